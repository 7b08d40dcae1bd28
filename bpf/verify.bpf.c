// SPDX-License-Identifier: GPL-2.0-only
/*
 * The verifier at tc ingress: before the IP stack, before defragmentation. Verdicts
 * and their order are those of scentd/wire/README.md, section 8.
 *
 * What is decided here carries the mark `mark_verified`, and the rules of the queue let
 * it by; without the mark a packet is undecided and the queue judges it: whatever this
 * program declines, or fails at, is never let in unseen. bpf/README.md says more.
 *
 * Only packets with a right tag change a map. Everything that is kept is bounded.
 */
#include "noted.h"
#include "prefix.h"
#include "remembered.h"
#include "tag.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct scent_identity);
	__type(value, struct scent_incoming);
} identities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct scent_verify_settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scent_clock);
} clock SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCENT_RECENT_SIZE);
	__type(key, __u32);
	__type(value, struct scent_verified);
} recent SEC(".maps");

/* What becomes of a packet, and why. */
struct outcome {
	int verdict;			/* scent_verdict, or one of these: */
#define LEAVE (-1)			/* not ours to judge */
#define UNDECIDED (-2)			/* for the queue */
	__u32 treatment;		/* scent_treatment */
	__u32 glance;			/* unmasked, of an accepted packet */
};

/* Where a packet goes, and what is known of its sender. */
struct route {
	const struct scent_verify_settings *settings;
	struct scent_cached *known;
	__u32 selector;
	__u32 network;
	__u32 candidate;
	__u32 remembered;		/* `known` is about these addresses */
};

/* The sender that a scent names, if its addresses are his; NULL with the verdict otherwise. */
static __always_inline struct scent_incoming *sender(struct route *way, const struct packet *p, const struct read *r,
						     int *verdict)
{
	const struct scent_verify_settings *s = way->settings;
	struct query q = {.key.family = p->family};
	struct scent_identity id = {.network = way->network};
	struct scent_incoming *in;

	*(__u32 *)id.key_id = KEY_ID(r);
	if (way->remembered && way->known->key_id == KEY_ID(r)) {
		way->candidate = id.candidate = way->known->detail;
		in = bpf_map_lookup_elem(&identities, &id);
		if (in)
			return in;
	}
	*verdict = SCENT_VERDICT_UNKNOWN_KEY;
	for (__u32 i = 0; i < SCENT_CANDIDATES; i++) {
		way->candidate = id.candidate = i;
		in = bpf_map_lookup_elem(&identities, &id);
		if (!in)
			break;
		q.key.scope = SCENT_SCOPE_MEMBER + in->peer;
		if (find(p->family == 4 ? &s->member4 : &s->member6, &p->source, &q))
			return in;
		*verdict = SCENT_VERDICT_WRONG_ADDRESS;
	}
	/* Number 0 is no network: the key is known to another of ours. */
	id.network = 0;
	id.candidate = 0;
	if (*verdict == SCENT_VERDICT_UNKNOWN_KEY && bpf_map_lookup_elem(&identities, &id))
		*verdict = SCENT_VERDICT_WRONG_ADDRESS;
	return NULL;
}

/* Whether the tag covers as much as this peer's packets must have covered. */
static __always_inline int binding_holds(struct __sk_buff *skb, __u32 at, const struct packet *p, __u32 flags,
					 __u32 sender_bound)
{
	if (flags & SCENT_FLAG_SENDER)
		return sender_bound && !(flags & SCENT_FLAG_PORTS);
	if (sender_bound)
		return 0;
	if (flags & SCENT_FLAG_PORTS)
		return p->has_ports;
	return !p->has_ports || wire_length(skb, at, p) > PORTLESS_MIN;
}

/* Section 8, from "unsupported-version" on. */
static __always_inline int check(struct __sk_buff *skb, __u32 at, struct route *way, const struct packet *p,
				 const struct read *r, __u64 now, __u32 *glance)
{
	const struct scent_verify_settings *s = way->settings;
	struct scent_cached *known = way->known;
	__u64 epoch = EPOCH(r) * SECOND;
	__u32 flags = FLAGS(r), period, *pair;
	struct scent_receiving *state;
	struct scent_incoming *in;
	int verdict;

	if (VERSION(r) != SCENT_VERSION)
		return SCENT_VERDICT_UNSUPPORTED_VERSION;
	if (flags & 8 || COUNT(r) != SCENT_FRAGMENTS || INDEX(r) >= SCENT_FRAGMENTS)
		return SCENT_VERDICT_MALFORMED;
	in = sender(way, p, r, &verdict);
	if (!in)
		return verdict;
	if (!binding_holds(skb, at, p, flags, in->flags & SCENT_PAIR_SENDER))
		return SCENT_VERDICT_WRONG_BINDING;
	if (epoch > now + s->max_future)
		return SCENT_VERDICT_FUTURE;
	period = EPOCH(r) / SCENT_PERIOD - in->period + 1;
	if (epoch + s->max_age < now || period >= SCENT_PERIODS)
		return SCENT_VERDICT_STALE;
	if (tag_of(in->tag_keys + 2 * period, r->scent, r->tail, p, flags) != r->tag)
		return SCENT_VERDICT_BAD_TAG;
	pair = &in->pair;
	state = bpf_map_lookup_elem(&receiving, pair);
	if (!state)
		return UNDECIDED;
	verdict = note(s, state, in, in->glance_keys + 2 * period, p, r, now);
	if (verdict != SCENT_VERDICT_ACCEPTED)
		return verdict;
	*glance = state->glance;
	if (way->remembered && known->key_id == KEY_ID(r) && known->noted == (__u32)(now / SECOND))
		return SCENT_VERDICT_ACCEPTED;
	note_node(state, in->pair, p, now / SECOND);
	remember(known, p, way->selector, way->network, way->candidate);
	known->key_id = KEY_ID(r);
	known->noted = now / SECOND;
	return SCENT_VERDICT_ACCEPTED;
}

static __always_inline int strip_ipv4(struct __sk_buff *skb, __u32 at, struct packet *p, const struct read *r)
{
	__u32 length = p->length - SCENT_IPV4_OPTION_LEN, before = p->first[0];
	__u64 sum = (__u16)~(p->first[2] >> 16);

	if (bpf_skb_adjust_room(skb, -SCENT_IPV4_OPTION_LEN, BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return -1;
	/* By difference (RFC 1624): a header that came damaged stays so, and the kernel drops it. */
	p->first[0] = (before & 0xff00) | 0x45 | (__u32)bpf_htons(length) << 16;
	sum += sum_word((__u32)~before) + p->first[0] + (__u16)~(SCENT_IPV4_OPTION_TYPE | SCENT_IPV4_OPTION_LEN << 8);
	sum += sum_word(~r->scent[0]) + sum_word(~r->scent[1]) + sum_word(~r->scent[2]);
	sum += sum_word(~r->tag) + (__u16)~r->tail;
	p->first[2] = (p->first[2] & 0xffff) | (__u32)(__u16)~sum_fold(sum) << 16;
	return bpf_skb_store_bytes(skb, at, p->first, 12, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int strip_ipv6(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	__u32 payload = p->length - IPV6_LEN - SCENT_IPV6_HEADER_LEN;

	if (bpf_skb_adjust_room(skb, -SCENT_IPV6_HEADER_LEN, BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return -1;
	p->first[1] = (p->first[1] & 0xff000000) | p->next << 16 | bpf_htons(payload);
	return bpf_skb_store_bytes(skb, at + 4, &p->first[1], 4, BPF_F_RECOMPUTE_CSUM);
}

/* Routers' errors about packets of ours are rewritten by the queue, whether or not they have a scent themselves. */
static __always_inline int is_too_big(const struct packet *p)
{
	if (p->fragment)
		return 0;
	if (p->family == 4)
		return p->protocol == IPPROTO_ICMP && (p->ports & 0xffff) == 0x0403;
	return p->protocol == IPPROTO_ICMPV6 && (p->ports & 0xff) == 2;
}

static __always_inline __u32 treatments_of(const struct scent_verify_settings *s, const struct packet *p)
{
	struct query q = {.key.scope = SCENT_SCOPE_SOURCE, .key.family = p->family};

	return find(p->family == 4 ? &s->source4 : &s->source6, &p->source, &q) ? q.value.detail : s->fallback;
}

static __always_inline void absent(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
				   const struct packet *p, struct outcome *o)
{
	__u32 treatments = treatments_of(s, p), shift = SCENT_TREATMENTS_ABSENT;

	if (!(treatments >> SCENT_TREATMENTS_EXPECTED & 1) || is_neighbourly(p)) {
		o->verdict = LEAVE;
		return;
	}
	/* Stampers leave only what they cannot: TCP is segmented, never fragmented, and what is small stays whole. */
	if (p->family == 6 && p->protocol != IPPROTO_TCP &&
	    (p->fragment || wire_length(skb, at, p) > PORTLESS_MIN))
		shift = SCENT_TREATMENTS_ABSENT_IPV6_FRAGMENT;
	o->verdict = SCENT_VERDICT_ABSENT;
	o->treatment = treatments >> shift & 3;
}

/* Whether a declined packet is a part of one; of IPv6 headers so many are looked at, and more are taken for a part. */
static __always_inline int is_part(struct __sk_buff *skb, __u32 at, const struct packet *p)
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
 * The queue's to judge. But a part must not get to defragmentation unjudged: the whole has the mark of its first part.
 * Where unscented packets are not welcome it is one of them.
 */
static __always_inline void declined(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
				     const struct packet *p, struct outcome *o)
{
	__u32 treatments = treatments_of(s, p);
	__u32 shift = p->family == 6 ? SCENT_TREATMENTS_ABSENT_IPV6_FRAGMENT : SCENT_TREATMENTS_ABSENT;

	o->verdict = UNDECIDED;
	if (!(treatments >> SCENT_TREATMENTS_EXPECTED & 1) || (treatments >> shift & 3) == SCENT_TREATMENT_PASS ||
	    !is_part(skb, at, p))
		return;
	o->verdict = SCENT_VERDICT_ABSENT;
	o->treatment = treatments >> shift & 3;
}

/* Which of our networks a packet is for, or -1. */
static __always_inline int find_way(struct route *way, const struct packet *p)
{
	struct query q = {.key.scope = SCENT_SCOPE_LOCAL, .key.family = p->family};

	way->known = cached(p);
	if (!way->known)
		return -1;
	way->remembered = remembers(way->known, p, way->selector);
	if (way->remembered) {
		way->network = way->known->number;
		return 0;
	}
	if (!find(p->family == 4 ? &way->settings->local4 : &way->settings->local6, &p->destination, &q))
		return -1;
	way->network = q.value.number;
	return 0;
}

/* The same bytes were accepted in this tick of the clock. Compared in constant time, like any tag. */
static __always_inline int accepted_before(const struct scent_verified *known, const struct packet *p,
					   const struct read *r, __u32 turn, __u64 now, __u64 offset)
{
	__u64 differ = (known->scent[0] ^ r->scent[0]) | (known->scent[1] ^ r->scent[1]) |
		       (known->scent[2] ^ r->scent[2]) | (known->tag ^ r->tag) | (known->tail ^ r->tail);

	return !differ && known->now == now && known->offset == offset && known->selector == turn &&
	       same_flow(&known->flow, p);
}

static __always_inline void remember_accepted(struct scent_verified *known, const struct packet *p,
					      const struct read *r, __u32 turn, __u64 now, __u64 offset, __u32 glance)
{
	set_flow(&known->flow, p);
	known->now = now;
	known->offset = offset;
	known->scent[0] = r->scent[0];
	known->scent[1] = r->scent[1];
	known->scent[2] = r->scent[2];
	known->tag = r->tag;
	known->tail = r->tail;
	known->selector = turn;
	known->glance = glance;
}

/* Takes the scent off an accepted packet, or the packet itself if it is a beacon. */
static __always_inline void take_off(struct __sk_buff *skb, __u32 at, struct packet *p, const struct read *r,
				     struct outcome *o)
{
	o->verdict = SCENT_VERDICT_ACCEPTED;
	o->treatment = FLAGS(r) & SCENT_FLAG_BEACON ? SCENT_TREATMENT_DROP : SCENT_TREATMENT_PASS;
	if (o->treatment == SCENT_TREATMENT_PASS &&
	    (p->family == 4 ? strip_ipv4(skb, at, p, r) : strip_ipv6(skb, at, p))) {
		count(SCENT_VERIFY_COUNT_FAILED, 1);
		o->verdict = LEAVE;
	}
}

static __always_inline void scented(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
				    __u32 turn, struct packet *p, __u64 now, __u64 offset, struct outcome *o)
{
	struct route way = {.settings = s, .selector = turn};
	__u32 index = recent_index(p);
	struct scent_verified *known = bpf_map_lookup_elem(&recent, &index);
	struct read r;

	int whole = read_scent(skb, at, p, &r);

	o->verdict = LEAVE;
	if (!known)
		return;
	if (whole && accepted_before(known, p, &r, turn, now, offset)) {
		o->glance = known->glance;
	} else {
		if (find_way(&way, p))
			return;
		o->verdict = whole ? check(skb, at, &way, p, &r, now + offset, &o->glance) : UNDECIDED;
		if (o->verdict > SCENT_VERDICT_ABSENT)
			o->treatment = treatments_of(s, p) >> SCENT_TREATMENTS_REJECTED & 3;
		if (o->verdict != SCENT_VERDICT_ACCEPTED)
			return;
		/* Where the ports are not in the tag a packet's length counts, too. */
		if (FLAGS(&r) & SCENT_FLAG_PORTS || !p->has_ports)
			remember_accepted(known, p, &r, turn, now, offset, o->glance);
	}
	take_off(skb, at, p, &r, o);
}

static __always_inline int quarantined(const struct scent_verify_settings *s, const struct packet *p, __u64 monotonic)
{
	const struct scent_lengths *lengths = p->family == 4 ? &s->quarantine4 : &s->quarantine6;
	struct query q = {.key.scope = SCENT_SCOPE_QUARANTINE, .key.family = p->family};

	return lengths->count && find(lengths, &p->source, &q) && monotonic < q.value.number * SECOND;
}

/* The one exit: marks what is decided, counts it, lets it go or drops it. */
static __always_inline int settle(struct __sk_buff *skb, const struct scent_verify_settings *s, __u32 packets,
				  const struct outcome *o)
{
	__u32 glance = s->mark_glance;

	if (o->verdict == UNDECIDED)
		count(SCENT_VERIFY_COUNT_DECLINED, packets);
	if (o->verdict < 0)
		return TC_ACT_UNSPEC;
	count(3 * o->verdict + o->treatment, packets);
	if (o->treatment == SCENT_TREATMENT_DROP)
		return TC_ACT_SHOT;
	skb->mark |= s->mark_verified | (o->treatment == SCENT_TREATMENT_REJECT ? s->mark_rejected : 0);
	if (o->verdict == SCENT_VERDICT_ACCEPTED && glance)
		skb->mark = (skb->mark & ~glance) | (o->glance * (glance & -glance) & glance);
	return TC_ACT_UNSPEC;
}

static __always_inline int verify(struct __sk_buff *skb, __u32 at)
{
	__u32 zero = 0, index, *turn = bpf_map_lookup_elem(&selector, &zero);
	struct scent_clock *time = bpf_map_lookup_elem(&clock, &zero);
	struct outcome o = {.verdict = LEAVE};
	__u32 packets = skb->gso_segs ?: 1;
	struct scent_verify_settings *s;
	struct route way = {};
	struct packet p;
	enum form form;
	__u32 marks;
	__u64 now;

	if (!turn || !time)
		return TC_ACT_UNSPEC;
	way.selector = *turn;
	index = way.selector & 1;
	way.settings = s = bpf_map_lookup_elem(&settings, &index);
	if (!s)
		return TC_ACT_UNSPEC;
	/* A packet out of a tunnel may have the marks of the one that it came in, which say nothing of it. */
	marks = s->mark_verified | s->mark_rejected | s->mark_glance;
	if (skb->mark & marks)
		skb->mark &= ~marks;
	now = bpf_ktime_get_coarse_ns();
	/* A tagged frame comes by once more on its VLAN's interface; group addresses are nobody's. */
	if (now > time->until || skb->pkt_type != 0 || (skb->vlan_present && skb->vlan_tci & 0xfff))
		return TC_ACT_UNSPEC;
	form = parse(skb, at, &p);
	if (form == FORM_NONE)
		return TC_ACT_UNSPEC;
	if (quarantined(s, &p, now)) {
		count(SCENT_VERIFY_COUNT_QUARANTINED, packets);
		return TC_ACT_SHOT;
	}
	if (form == FORM_SCENTED && !is_too_big(&p)) {
		scented(skb, at, s, way.selector, &p, now, time->offset, &o);
		return settle(skb, s, packets, &o);
	}
	if (find_way(&way, &p))
		return TC_ACT_UNSPEC;
	if (form == FORM_DECLINED)
		declined(skb, at, s, &p, &o);
	else if (is_too_big(&p))
		o.verdict = UNDECIDED;
	else
		absent(skb, at, s, &p, &o);
	return settle(skb, s, packets, &o);
}

/* On an interface with Ethernet headers. */
SEC("tc")
int scent_verify_l2(struct __sk_buff *skb)
{
	return verify(skb, ETH_HLEN);
}

/* On one without: tunnels, PPP. */
SEC("tc")
int scent_verify_l3(struct __sk_buff *skb)
{
	return verify(skb, 0);
}
