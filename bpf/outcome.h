/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The outcome of a packet at the verifier, and the verdict on packets whose scent cannot be checked: packets without a
 * scent, and packets that parse.h declined.
 */
#ifndef SCENT_OUTCOME_H
#define SCENT_OUTCOME_H

#include "accept.h"
#include "lpm.h"

struct outcome {
	int verdict;			/* scent_verdict, or one of these: */
#define LEAVE (-1)			/* the packet is not judged */
#define UNDECIDED (-2)			/* for the queue */
#define BARRED (-3)			/* accepted, and dropped: its sender is in quarantine */
	__u32 treatment;		/* scent_treatment */
	__u32 glance;			/* unmasked, of an accepted packet */
	__u32 pair;			/* whose packet it is: its own, or any of the peer's; SCENT_NO_PAIR: nobody's we know */
	__u32 epoch;			/* of a packet that is refused for it, else 0 */
	struct scent_receiving *state;	/* of an accepted packet whose scent was looked up; else NULL */
};

/*
 * Whether this is a router's error about a packet that was too big, perhaps one of ours. The queue rewrites them all,
 * scented or not.
 */
static __always_inline int is_icmp_too_big(const struct packet *p)
{
	if (p->fragment)
		return 0;
	if (p->family == 4)
		return p->protocol == IPPROTO_ICMP && (p->ports & 0xffff) == 0x0403;
	return p->protocol == IPPROTO_ICMPV6 && (p->ports & 0xff) == 2;
}

/* How this sender's packets are treated; the outcome learns whose packet it is. */
static __always_inline __u32 treatments_of(const struct scent_verify_settings *s, const struct packet *p,
					   struct outcome *o)
{
	struct query q = {.key.scope = SCENT_SCOPE_SOURCE, .key.family = p->family};

	o->pair = SCENT_NO_PAIR;
	if (!find_prefix(p->family == 4 ? &s->source4 : &s->source6, &p->source, &q))
		return s->fallback;
	o->pair = q.value.number;
	return q.value.detail;
}

static __always_inline void judge_absent(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
					 const struct packet *p, struct outcome *o)
{
	__u32 treatments = treatments_of(s, p, o), shift = SCENT_TREATMENTS_ABSENT;

	if (!(treatments >> SCENT_TREATMENTS_EXPECTED & 1) || is_neighbourly(p)) {
		o->verdict = LEAVE;
		return;
	}
	/*
	 * A stamper may have left a fragment unstamped, or a datagram that it could only fragment. It has no such
	 * reason for TCP, which is segmented, or for a small packet, which stays whole.
	 */
	if (p->family == 6 && p->protocol != IPPROTO_TCP &&
	    (p->fragment || wire_length(skb, at, p) > SCENT_PORTLESS_MIN))
		shift = SCENT_TREATMENTS_ABSENT_IPV6_FRAGMENT;
	o->verdict = SCENT_VERDICT_ABSENT;
	o->treatment = treatments >> shift & 3;
}

/* Whether a declined packet is a fragment. It reads four extension headers; a packet with more counts as a fragment. */
static __always_inline int is_fragment(struct __sk_buff *skb, __u32 at, const struct packet *p)
{
	__u32 next = p->first[1] >> 16 & 0xff, offset = IPV6_LEN;
	__u8 head[4];

	if (p->family == 4)
		return p->fragment;
	for (int i = 0; i < 4; i++) {
		if (bpf_skb_load_bytes(skb, at + (offset & 0xffff), head, 4))
			return 0;
		if (next == IPPROTO_FRAGMENT)
			return head[2] | (head[3] & 0xf9);
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			return 0;
		next = head[0];
		offset += (head[1] + 1) * 8;
	}
	return 1;
}

/*
 * The queue judges packets that parse.h declined. But no fragment may reach defragmentation unjudged: the whole packet
 * would have the mark of its first fragment. If unscented packets are not passed, such a fragment counts as unscented.
 */
static __always_inline void judge_declined(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
					   const struct packet *p, struct outcome *o)
{
	__u32 treatments = treatments_of(s, p, o);
	__u32 shift = p->family == 6 ? SCENT_TREATMENTS_ABSENT_IPV6_FRAGMENT : SCENT_TREATMENTS_ABSENT;

	o->verdict = UNDECIDED;
	if (!(treatments >> SCENT_TREATMENTS_EXPECTED & 1) || (treatments >> shift & 3) == SCENT_TREATMENT_PASS ||
	    !is_fragment(skb, at, p))
		return;
	o->verdict = SCENT_VERDICT_ABSENT;
	o->treatment = treatments >> shift & 3;
}

#endif
