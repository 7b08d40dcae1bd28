// SPDX-License-Identifier: GPL-2.0-only
/*
 * The verifier at tc ingress, before the IP stack and before defragmentation. Verdicts
 * and their order are those of scentd/wire/README.md, section 8.
 *
 * A packet that this program has judged carries the mark `mark_verified`, and the rules of
 * the queue let it by. The queue judges every packet without the mark: the packets that this
 * program declines or fails at. bpf/README.md says more.
 *
 * Only packets with a right tag change a map, and every map is bounded.
 */
#include "carrier_ipv4_option.h"
#include "carrier_ipv6_header.h"
#include "parse.h"
#include "accept.h"
#include "outcome.h"
#include "refuse.h"
#include "lpm.h"
#include "cache.h"
#include "mss.h"
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

/* The network to which a packet goes, and the cached results of the tables for its addresses. */
struct route {
	const struct scent_verify_settings *settings;
	struct scent_cached *known;
	__u32 selector;
	__u32 network;
	__u32 candidate;
	__u32 hit;			/* `known` is about these addresses */
	__u32 pair;			/* of the sender, once it is found */
	struct scent_receiving *state;	/* likewise */
};

/* The sender that a scent names, if the packet's source is one of its addresses; otherwise NULL and the verdict. */
static __always_inline struct scent_incoming *find_sender(struct route *route, const struct packet *p,
							  const struct scent_words *w, int *verdict)
{
	const struct scent_verify_settings *s = route->settings;
	struct query q = {.key.family = p->family};
	struct scent_identity id = {.network = route->network};
	struct scent_incoming *in;

	*(__u32 *)id.key_id = KEY_ID(w);
	if (route->hit && route->known->key_id == KEY_ID(w)) {
		route->candidate = id.candidate = route->known->detail;
		in = bpf_map_lookup_elem(&identities, &id);
		if (in)
			return in;
	}
	*verdict = SCENT_VERDICT_UNKNOWN_KEY;
	for (__u32 i = 0; i < SCENT_CANDIDATES; i++) {
		route->candidate = id.candidate = i;
		in = bpf_map_lookup_elem(&identities, &id);
		if (!in)
			break;
		q.key.scope = SCENT_SCOPE_MEMBER + in->peer;
		if (find_prefix(p->family == 4 ? &s->member4 : &s->member6, &p->source, &q))
			return in;
		*verdict = SCENT_VERDICT_WRONG_ADDRESS;
	}
	/* Under number 0, which is no network, are the keys of all networks: another of ours knows this one. */
	id.network = 0;
	id.candidate = 0;
	if (*verdict == SCENT_VERDICT_UNKNOWN_KEY && bpf_map_lookup_elem(&identities, &id))
		*verdict = SCENT_VERDICT_WRONG_ADDRESS;
	return NULL;
}

/* Whether the tag covers all that it must cover in packets of this peer. */
static __always_inline int binding_holds(struct __sk_buff *skb, __u32 at, const struct packet *p, __u32 flags,
					 __u32 sender_bound)
{
	if (flags & SCENT_FLAG_SENDER)
		return sender_bound && !(flags & SCENT_FLAG_PORTS);
	if (sender_bound)
		return 0;
	if (flags & SCENT_FLAG_PORTS)
		return p->has_ports;
	return !p->has_ports || wire_length(skb, at, p) > SCENT_PORTLESS_MIN;
}

/*
 * The key of a period, by its index. check() has looked at its bound. Linux 6.1 forgets that, and sees a mask; struct
 * scent_incoming has room behind for the index that the mask lets through.
 */
static __always_inline const __u64 *key_at(const __u64 *keys, __u64 period)
{
	asm volatile("" : "+r"(period));
	return keys + 2 * (period & SCENT_PERIODS);
}

static __always_inline __u64 tag_by(struct tagged *tagged, const struct scent_incoming *in, __u32 period)
{
	const __u64 *key = key_at(in->tag_keys, period);

	tagged->key[0] = key[0];
	tagged->key[1] = key[1];
	return tag_of(tagged);
}

/*
 * The entry whose tag key fits, or NULL. If our network has two keys, the packet may be made for either: the one for
 * which the pair's newest epoch was made comes first, so that most packets need one tag, and none more than two.
 */
static __always_inline struct scent_incoming *find_key(const struct route *route, struct scent_incoming *in,
						       const struct scent_receiving *state, const struct packet *p,
						       const struct scent_words *w, __u32 period, __u32 flags)
{
	struct scent_incoming *other = NULL, *first = in;
	struct tagged tagged = {};

	if (in->flags & SCENT_PAIR_TWO_KEYS) {
		struct scent_identity id = {.network = route->network, .candidate = route->candidate + SCENT_CANDIDATES};

		*(__u32 *)id.key_id = KEY_ID(w);
		other = bpf_map_lookup_elem(&identities, &id);
		if (other && *(__u64 *)other->key_ids == *(__u64 *)state->key_ids) {
			first = other;
			other = in;
		}
	}
	cover(&tagged, w->scent, w->tail, p, flags);
	if (tag_by(&tagged, first, period) == w->tag)
		return first;
	if (other && tag_by(&tagged, other, period) == w->tag)
		return other;
	return NULL;
}

/* The verdict by section 8, from "unsupported-version" on. */
static __always_inline int check(struct __sk_buff *skb, __u32 at, struct route *route, const struct packet *p,
				 const struct scent_words *w, __u64 now, __u32 *glance)
{
	const struct scent_verify_settings *s = route->settings;
	struct scent_cached *known = route->known;
	__u64 epoch = EPOCH(w) * SECOND;
	__u32 flags = FLAGS(w), period, *pair;
	struct scent_receiving *state;
	struct scent_incoming *in;
	int verdict;

	if (VERSION(w) != SCENT_VERSION)
		return SCENT_VERDICT_UNSUPPORTED_VERSION;
	if (flags & 8 || COUNT(w) != SCENT_FRAGMENTS || INDEX(w) >= SCENT_FRAGMENTS)
		return SCENT_VERDICT_MALFORMED;
	in = find_sender(route, p, w, &verdict);
	if (!in)
		return verdict;
	route->pair = in->pair;
	if (!binding_holds(skb, at, p, flags, in->flags & SCENT_PAIR_SENDER))
		return SCENT_VERDICT_WRONG_BINDING;
	if (epoch > now + s->max_future)
		return SCENT_VERDICT_FUTURE;
	period = EPOCH(w) / SCENT_PERIOD - in->period + 1;
	if (epoch + s->max_age < now || period >= SCENT_PERIODS)
		return SCENT_VERDICT_STALE;
	pair = &in->pair;
	state = bpf_map_lookup_elem(&receiving, pair);
	if (!state)
		return UNDECIDED;
	in = find_key(route, in, state, p, w, period, flags);
	if (!in)
		return SCENT_VERDICT_BAD_TAG;
	verdict = accept(s, state, in, key_at(in->glance_keys, period), p, w, now);
	if (verdict != SCENT_VERDICT_ACCEPTED && verdict != LAGGING)
		return verdict;
	route->state = state;
	*glance = state->glance;
	if (verdict == LAGGING)
		return SCENT_VERDICT_ACCEPTED;
	if (route->hit && known->key_id == KEY_ID(w) && known->noted == (__u32)(now / SECOND))
		return SCENT_VERDICT_ACCEPTED;
	record_node(state, in->pair, p, now / SECOND);
	fill_cache(known, p, route->selector, route->network, route->candidate);
	known->key_id = KEY_ID(w);
	known->noted = now / SECOND;
	return SCENT_VERDICT_ACCEPTED;
}

/* Finds which of our networks a packet is for; -1 if it is for none. */
static __always_inline int find_route(struct route *route, const struct packet *p)
{
	struct query q = {.key.scope = SCENT_SCOPE_LOCAL, .key.family = p->family};

	route->known = cache_entry(p, 0);
	if (!route->known)
		return -1;
	route->hit = cache_hit(route->known, p, route->selector);
	if (route->hit) {
		route->network = route->known->number;
		return 0;
	}
	if (!find_prefix(p->family == 4 ? &route->settings->local4 : &route->settings->local6, &p->destination, &q) ||
	    !q.value.number)
		return -1;
	route->network = q.value.number;
	return 0;
}

/* Whether the same bytes were accepted in this tick of the clock. It compares in constant time, as with any tag. */
static __always_inline int is_repeated(const struct scent_verified *known, const struct packet *p,
				       const struct scent_words *w, __u32 turn, __u64 now, __u64 offset)
{
	__u64 differ = (known->scent[0] ^ w->scent[0]) | (known->scent[1] ^ w->scent[1]) |
		       (known->scent[2] ^ w->scent[2]) | (known->tag ^ w->tag) | (known->tail ^ w->tail);

	return !differ && known->now == now && known->offset == offset && known->selector == turn &&
	       same_flow(&known->flow, p);
}

static __always_inline void fill_recent(struct scent_verified *known, const struct packet *p,
					const struct scent_words *w, __u32 turn, __u64 now, __u64 offset,
					const struct outcome *o)
{
	set_flow(&known->flow, p);
	known->now = now;
	known->offset = offset;
	known->scent[0] = w->scent[0];
	known->scent[1] = w->scent[1];
	known->scent[2] = w->scent[2];
	known->tag = w->tag;
	known->tail = w->tail;
	known->selector = turn;
	known->glance = o->glance;
	known->pair = o->pair;
}

/* Takes the scent off an accepted packet, or the packet itself if it is a beacon. */
static __always_inline void strip(struct __sk_buff *skb, __u32 at, struct packet *p, const struct scent_words *w,
				  struct outcome *o)
{
	o->verdict = SCENT_VERDICT_ACCEPTED;
	o->treatment = FLAGS(w) & SCENT_FLAG_BEACON ? SCENT_TREATMENT_DROP : SCENT_TREATMENT_PASS;
	if (o->treatment == SCENT_TREATMENT_PASS &&
	    (p->family == 4 ? strip_ipv4_option(skb, at, p, w) : strip_ipv6_header(skb, at, p))) {
		count(SCENT_VERIFY_COUNT_FAILED, 1);
		o->verdict = LEAVE;
		return;
	}
	p->transport -= p->family == 4 ? SCENT_IPV4_OPTION_LEN : SCENT_IPV6_HEADER_LEN;
	p->length -= p->family == 4 ? SCENT_IPV4_OPTION_LEN : SCENT_IPV6_HEADER_LEN;
}

static __always_inline int is_listed(const struct scent_lengths *lengths, __u32 scope, const struct packet *p,
				     __u64 monotonic)
{
	struct query q = {.key.scope = scope, .key.family = p->family};

	return lengths->count && find_prefix(lengths, &p->source, &q) && monotonic < q.value.number * SECOND;
}

static __always_inline int is_quarantined(const struct scent_verify_settings *s, const struct packet *p,
					  __u64 monotonic)
{
	return is_listed(p->family == 4 ? &s->quarantine4 : &s->quarantine6, SCENT_SCOPE_QUARANTINE, p, monotonic);
}

/* Whether the sender of an accepted packet is quarantined at an address where others are, too. */
static __always_inline int is_barred(const struct scent_verify_settings *s, const struct packet *p, __u32 pair,
				     __u64 monotonic)
{
	return is_listed(p->family == 4 ? &s->barred4 : &s->barred6, SCENT_SCOPE_BARRED + pair, p, monotonic);
}

static __always_inline void judge_scented(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
					  __u32 turn, struct packet *p, __u64 now, __u64 offset, struct outcome *o)
{
	struct route route = {.settings = s, .selector = turn, .pair = SCENT_NO_PAIR};
	__u32 index = recent_index(p);
	struct scent_verified *known = bpf_map_lookup_elem(&recent, &index);
	struct scent_words w;
	int whole = read_scent(skb, at, p, &w);

	o->verdict = LEAVE;
	if (!known)
		return;
	if (whole && is_repeated(known, p, &w, turn, now, offset)) {
		o->glance = known->glance;
		o->pair = known->pair;
	} else {
		if (find_route(&route, p))
			return;
		o->verdict = whole ? check(skb, at, &route, p, &w, now + offset, &o->glance) : UNDECIDED;
		if (o->verdict > SCENT_VERDICT_ABSENT)
			o->treatment = treatments_of(s, p, o) >> SCENT_TREATMENTS_REJECTED & 3;
		if (o->pair == SCENT_NO_PAIR)	/* several peers have the address: the scent names one */
			o->pair = route.pair;
		if (o->verdict == SCENT_VERDICT_FUTURE || o->verdict == SCENT_VERDICT_STALE)
			o->epoch = EPOCH(&w);
		if (o->verdict != SCENT_VERDICT_ACCEPTED)
			return;
		o->pair = route.pair;
		o->state = route.state;
		if (is_barred(s, p, o->pair, now)) {
			o->verdict = BARRED;
			return;
		}
		/* Where the ports are not in the tag, the verdict is also about the packet's length. */
		if (FLAGS(&w) & SCENT_FLAG_PORTS || !p->has_ports)
			fill_recent(known, p, &w, turn, now, offset, o);
	}
	strip(skb, at, p, &w, o);
}

static __always_inline int drop_quarantined(__u32 packets)
{
	count(SCENT_VERIFY_COUNT_QUARANTINED, packets);
	return TC_ACT_SHOT;
}

static __always_inline int drop_barred(__u32 packets, const struct outcome *o, __u32 second)
{
	count(SCENT_VERIFY_COUNT_QUARANTINED, packets);
	count_of(o->pair, SCENT_VERIFY_COUNT_QUARANTINED, packets, second, 0);
	return TC_ACT_SHOT;
}

/*
 * A SYN of a peer that we stamp to may announce no longer segment than fits the path with a scent, and `mtu`: what it
 * announces is what this end sends.
 */
static __always_inline void make_room(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
				      const struct packet *p, __u32 mtu)
{
	struct query q = {.key.scope = SCENT_SCOPE_LOCAL};
	__u32 longest, fits;

	if (!is_syn(skb, at, p))
		return;
	q.key.family = p->family;
	if (!find_prefix(p->family == 4 ? &s->local4 : &s->local6, &p->destination, &q) || !q.value.detail)
		return;
	q.key.scope = SCENT_SCOPE_SOURCE;
	if (!find_prefix(p->family == 4 ? &s->source4 : &s->source6, &p->source, &q))
		return;
	longest = q.value.detail >> SCENT_TREATMENTS_SEGMENT;
	fits = segment_in(p, mtu);
	if (longest)
		lower_segment(skb, at + p->transport, p->length - p->transport, longest < fits ? longest : fits);
}

static __always_inline int let_go(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s,
				  const struct packet *p)
{
	if (p->protocol == IPPROTO_TCP)
		make_room(skb, at, s, p, IP_MAX);
	return TC_ACT_UNSPEC;
}

/* The one exit of judged packets: counts the packet, and drops it or marks it and lets it go. `now`: CLOCK_MONOTONIC. */
static __always_inline int settle(struct __sk_buff *skb, __u32 at, const struct scent_verify_settings *s, __u32 packets,
				  const struct packet *p, const struct outcome *o, __u64 now, __u32 second)
{
	__u32 glance = s->mark_glance, index = SCENT_TREATMENTS * o->verdict + o->treatment;

	if (o->verdict == BARRED)
		return drop_barred(packets, o, second);
	if (o->verdict == UNDECIDED)
		count(SCENT_VERIFY_COUNT_DECLINED, packets);
	if (o->verdict < 0)
		return TC_ACT_UNSPEC;
	count(index, packets);
	if (o->verdict == SCENT_VERDICT_ACCEPTED)
		count_accepted(o->state, o->pair, packets);
	else
		count_of(o->pair, index, packets, second, o->epoch);
	if (o->treatment == SCENT_TREATMENT_REJECT)
		tell_refused(skb, at, p, now);
	if (o->treatment != SCENT_TREATMENT_PASS)
		return TC_ACT_SHOT;
	skb->mark |= s->mark_verified;
	if (o->verdict == SCENT_VERDICT_ACCEPTED && glance)
		skb->mark = (skb->mark & ~glance) | (o->glance * (glance & -glance) & glance);
	return let_go(skb, at, s, p);
}

static __always_inline int verify(struct __sk_buff *skb, __u32 at)
{
	__u32 zero = 0, index, *turn = bpf_map_lookup_elem(&selector, &zero);
	struct scent_clock *time = bpf_map_lookup_elem(&clock, &zero);
	struct outcome o = {.verdict = LEAVE};
	__u32 packets = skb->gso_segs ?: 1;
	struct scent_verify_settings *s;
	struct route route = {};
	struct packet p;
	enum form form;
	__u32 marks;
	__u64 now;

	if (!turn || !time)
		return TC_ACT_UNSPEC;
	route.selector = *turn;
	index = route.selector & 1;
	route.settings = s = bpf_map_lookup_elem(&settings, &index);
	if (!s)
		return TC_ACT_UNSPEC;
	/* A packet out of a tunnel has the marks of the packet around it, which say nothing about it. */
	marks = s->mark_verified | s->mark_glance;
	if (skb->mark & marks)
		skb->mark &= ~marks;
	now = bpf_ktime_get_coarse_ns();
	/* A tagged frame comes by once more on its VLAN's interface; a group's address is nobody's. */
	if (now > time->until || skb->pkt_type != 0 || (skb->vlan_present && skb->vlan_tci & 0xfff))
		return TC_ACT_UNSPEC;
	form = parse(skb, at, &p);
	if (form == FORM_NONE)
		return TC_ACT_UNSPEC;
	if (form == FORM_SCENTED && !is_icmp_too_big(&p)) {
		judge_scented(skb, at, s, route.selector, &p, now, time->offset, &o);
		if (is_quarantined(s, &p, now))		/* judged, so that its all-clear is heard */
			return drop_quarantined(packets);
		return settle(skb, at, s, packets, &p, &o, now, (now + time->offset) / SECOND);
	}
	if (is_quarantined(s, &p, now))
		return drop_quarantined(packets);
	if (find_route(&route, &p))
		return form == FORM_DECLINED ? TC_ACT_UNSPEC : let_go(skb, at, s, &p);
	if (form == FORM_DECLINED)
		judge_declined(skb, at, s, &p, &o);
	else if (is_icmp_too_big(&p))
		o.verdict = UNDECIDED;
	else
		judge_absent(skb, at, s, &p, &o);
	return settle(skb, at, s, packets, &p, &o, now, (now + time->offset) / SECOND);
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

#include "bridged.h" /* uses what stands above */
