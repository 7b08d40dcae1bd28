/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The verifier at tc egress of a bridge's port: what the bridge forwards to a guest of ours (bridge.h).
 *
 * Nobody judges these packets after this program: no queue, no rule, no guard sees them. So it decides, too, what the
 * other programs leave to the queue, and it marks nothing. A refused packet is dropped, also where its sender would be
 * told: there is no host here to answer in the guest's name.
 */
#include "bridge.h"

/* A packet that this program cannot read is one without a scent. */
static __always_inline void judge_unread(const struct scent_verify_settings *s, const struct packet *p,
					 struct outcome *o)
{
	__u32 treatments = treatments_of(s, p, o);

	o->verdict = treatments >> SCENT_TREATMENTS_EXPECTED & 1 ? SCENT_VERDICT_ABSENT : LEAVE;
	o->treatment = treatments >> SCENT_TREATMENTS_ABSENT & 3;
}

static __always_inline int settle_bridged(__u32 packets, struct outcome *o, __u32 second)
{
	__u32 index;

	if (o->verdict < 0)
		return TC_ACT_UNSPEC;
	if (o->treatment == SCENT_TREATMENT_REJECT)
		o->treatment = SCENT_TREATMENT_DROP;
	index = SCENT_TREATMENTS * o->verdict + o->treatment;
	count(index, packets);
	if (o->verdict == SCENT_VERDICT_ACCEPTED)
		count_accepted(o->state, o->pair, packets);
	else
		count_of(o->pair, index, packets, second, o->epoch);
	return o->treatment == SCENT_TREATMENT_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

static __always_inline int verify_bridged(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
					  __u32 turn, __u64 offset, __u64 now)
{
	struct route route = {.settings = s, .selector = turn};
	struct outcome o = {.verdict = LEAVE};
	__u32 packets = skb->gso_segs ?: 1;
	struct packet p;
	enum form form = parse(skb, at, &p);

	if (form == FORM_NONE)
		return TC_ACT_UNSPEC;
	if (is_quarantined(s, &p, now)) {
		count(SCENT_VERIFY_COUNT_QUARANTINED, packets);
		return TC_ACT_SHOT;
	}
	if (form == FORM_SCENTED) {
		judge_scented(skb, at, s, turn, &p, now, offset, &o);
	} else {
		if (find_route(&route, &p))
			return TC_ACT_UNSPEC;
		if (form == FORM_DECLINED)
			judge_declined(skb, at, s, &p, &o);
		else
			judge_absent(skb, at, s, &p, &o);
	}
	if (o.verdict == UNDECIDED)
		judge_unread(s, &p, &o);
	return settle_bridged(packets, &o, (now + offset) / SECOND);
}

SEC("tc")
int scent_verify_port(struct __sk_buff *skb)
{
	__u32 zero = 0, index, *turn = bpf_map_lookup_elem(&selector, &zero);
	struct scent_clock *time = bpf_map_lookup_elem(&clock, &zero);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct scent_verify_settings *s;

	if (!turn || !time || now > time->until_bridged || !is_bridged(skb) || is_group_frame(skb))
		return TC_ACT_UNSPEC;
	index = *turn & 1;
	s = bpf_map_lookup_elem(&settings, &index);
	return s ? verify_bridged(skb, ETH_HLEN, s, *turn, time->offset, now) : TC_ACT_UNSPEC;
}
