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

#define ICMP_LEN 8			/* of both families: behind it stands what the error quotes */

/*
 * A router's error about a scented packet of a guest that was too big: the guest has to know how much of it is its own.
 * The quotation keeps its scent. A packet out of bounds is left as it is.
 */
static __always_inline void lower_mtu4(struct __sk_buff *skb, __u32 icmp)
{
	__u16 mtu, lowered;
	__u32 option;
	__u8 first;

	if (bpf_skb_load_bytes(skb, icmp + ICMP_LEN, &first, 1) || first != 0x4e ||
	    bpf_skb_load_bytes(skb, icmp + ICMP_LEN + IPV4_LEN, &option, 4) || option != IPV4_SCENT ||
	    bpf_skb_load_bytes(skb, icmp + 6, &mtu, 2) || bpf_ntohs(mtu) <= SCENT_IPV4_OPTION_LEN)
		return;
	lowered = bpf_htons(bpf_ntohs(mtu) - SCENT_IPV4_OPTION_LEN);
	if (!bpf_l4_csum_replace(skb, icmp + 2, mtu, lowered, 2))
		bpf_skb_store_bytes(skb, icmp + 6, &lowered, 2, 0);
}

static __always_inline void lower_mtu6(struct __sk_buff *skb, __u32 icmp)
{
	__u32 mtu, lowered;
	__u64 header;
	__u8 next;

	if (bpf_skb_load_bytes(skb, icmp + ICMP_LEN + 6, &next, 1) || next != IPPROTO_DSTOPTS ||
	    bpf_skb_load_bytes(skb, icmp + ICMP_LEN + IPV6_LEN, &header, 8) ||
	    (header >> 8 & 0xffffffffff) != IPV6_SCENT || bpf_skb_load_bytes(skb, icmp + 4, &mtu, 4) ||
	    bpf_ntohl(mtu) <= SCENT_IPV6_HEADER_LEN)
		return;
	lowered = bpf_htonl(bpf_ntohl(mtu) - SCENT_IPV6_HEADER_LEN);
	if (!bpf_l4_csum_replace(skb, icmp + 2, mtu, lowered, 4))
		bpf_skb_store_bytes(skb, icmp + 4, &lowered, 4, 0);
}

static __always_inline int settle_bridged(__u32 packets, struct outcome *o, __u32 second)
{
	__u32 index;

	if (o->verdict == BARRED)
		return drop_barred(packets, o, second);
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

/* Lets a packet go. No route leads over the bridge, but its ports carry alike. */
static __always_inline int let_guest_have(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
					  const struct packet *p)
{
	__u32 mtu = 0;

	if (p->protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	if (bpf_check_mtu(skb, 0, &mtu, 0, 0) < 0)
		mtu = IP_MAX;
	make_room(skb, at, s, p, mtu);
	return TC_ACT_UNSPEC;
}

static __always_inline int verify_bridged(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
					  __u32 turn, __u64 offset, __u64 now)
{
	struct route route = {.settings = s, .selector = turn};
	struct outcome o = {.verdict = LEAVE};
	__u32 packets = skb->gso_segs ?: 1;
	struct packet p;
	enum form form = parse(skb, at, &p);
	int action;

	if (form == FORM_NONE)
		return TC_ACT_UNSPEC;
	if (is_quarantined(s, &p, now))
		return drop_quarantined(packets);
	if (form == FORM_SCENTED) {
		judge_scented(skb, at, s, turn, &p, now, offset, &o);
	} else {
		if (find_route(&route, &p))
			return form == FORM_DECLINED ? TC_ACT_UNSPEC : let_guest_have(skb, at, s, &p);
		if (form == FORM_DECLINED)
			judge_declined(skb, at, s, &p, &o);
		else
			judge_absent(skb, at, s, &p, &o);
	}
	if (o.verdict == UNDECIDED)
		judge_unread(s, &p, &o);
	action = settle_bridged(packets, &o, (now + offset) / SECOND);
	if (action == TC_ACT_UNSPEC && form != FORM_DECLINED && is_icmp_too_big(&p)) {
		if (p.family == 4)
			lower_mtu4(skb, at + IPV4_LEN);
		else
			lower_mtu6(skb, at + IPV6_LEN);
	}
	if (action == TC_ACT_UNSPEC && form != FORM_DECLINED)
		return let_guest_have(skb, at, s, &p);
	return action;
}

SEC("tc")
int scent_verify_port(struct __sk_buff *skb)
{
	struct scent_verify_settings *s;
	__u32 zero = 0, index, *turn;
	struct scent_clock *time;
	__u64 now;

	if (!is_bridged(skb) || is_group_frame(skb))
		return TC_ACT_UNSPEC;
	turn = bpf_map_lookup_elem(&selector, &zero);
	time = bpf_map_lookup_elem(&clock, &zero);
	now = bpf_ktime_get_coarse_ns();
	if (!turn || !time || now > time->until_bridged)
		return TC_ACT_UNSPEC;
	index = *turn & 1;
	s = bpf_map_lookup_elem(&settings, &index);
	return s ? verify_bridged(skb, ETH_HLEN, s, *turn, time->offset, now) : TC_ACT_UNSPEC;
}
