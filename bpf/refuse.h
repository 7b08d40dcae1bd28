/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Refused packets whose sender is to be told. They are dropped here like the others: a packet that went on with a mark
 * that stands for its fate would come in where somebody else writes marks. The daemon answers from an event.
 */
#ifndef SCENT_REFUSE_H
#define SCENT_REFUSE_H

#include "accept.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scent_answered);
} answered SEC(".maps");

/* Whether this tick of the clock has an answer left: a flood gets few, and leaves the ring to profiles. */
static __always_inline int may_be_answered(__u64 now)
{
	__u32 zero = 0;
	struct scent_answered *known = bpf_map_lookup_elem(&answered, &zero);

	if (!known)
		return 0;
	if (known->now != now) {
		known->now = now;
		known->told = 0;
	}
	return known->told++ < SCENT_ANSWERS;
}

static __always_inline void tell_refused(struct __sk_buff *skb, __u32 at, const struct packet *p, __u64 now)
{
	__u32 held = skb->len - at;
	struct scent_refused *event;

	if (!may_be_answered(now))
		return;
	if (held > SCENT_REFUSED_LEN)
		held = SCENT_REFUSED_LEN;
	asm volatile("" : "+r"(held));	/* the kernel's verifier wants the bounds on the register that is used */
	if (held < IPV4_LEN || held > SCENT_REFUSED_LEN)
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(SCENT_VERIFY_COUNT_EVENTS_LOST, 1);
		return;
	}
	event->kind = SCENT_EVENT_REFUSED;
	event->interface = skb->ifindex;
	event->length = p->length;
	event->held = held;
	__builtin_memset(event->packet, 0, SCENT_REFUSED_LEN);
	if (bpf_skb_load_bytes(skb, at, event->packet, held)) {
		bpf_ringbuf_discard(event, 0);
		return;
	}
	bpf_ringbuf_submit(event, 0);
}

#endif
