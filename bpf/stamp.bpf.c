// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stamper at tc egress, behind the IP layer and before segmentation: it computes one
 * scent for a large send, and the kernel copies it to every segment.
 *
 * It checks the packet, grows it and writes the scent. Nothing in the packet changes before
 * it has grown. The packet goes on in any case, and TC_ACT_UNSPEC lets the programs of
 * others run. bpf/README.md has the order of the hooks.
 */
#define COUNTERS SCENT_STAMP_COUNTERS

#include "carrier_ipv4_option.h"
#include "carrier_ipv6_header.h"
#include "count.h"
#include "parse.h"
#include "options.h"
#include "lpm.h"
#include "cache.h"
#include "bridge.h"
#include "mss.h"
#include "tag.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);	/* an update replaces the whole value at once */
	__uint(max_entries, 256);
	__type(key, __u32);			/* pair */
	__type(value, struct scent_outgoing);
} outgoing SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct scent_stamp_settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCENT_RECENT_SIZE);
	__type(key, __u32);
	__type(value, struct scent_stamped);
} recent SEC(".maps");

/* A Hop-by-Hop header on its way to its place before ours; a processor moves one at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[HOP_BY_HOP_MAX]);
} moved SEC(".maps");

#define UNCOUNTED (-1)
#define UNSTAMPED(reason) (SCENT_STAMP_COUNT_UNSTAMPED + SCENT_UNSTAMPED_##reason)

/*
 * The index of the fragment that goes next. Each of the first ten packets takes another;
 * then one fragment serves for a run of packets, because receivers merge only segments with
 * equal headers. Runs go in rounds of ten, and each round begins at a random fragment: a flow
 * of regular rhythm would have the same few in each, and its packets may be all that one of
 * several verifiers sees. Processors may race for the end of a run: it ends once or twice.
 */
static __always_inline __u32 next_fragment(struct scent_outgoing *out, __u64 now, __u64 run)
{
	__u32 index = SCENT_FRAGMENTS;

	if (out->sent < SCENT_FRAGMENTS)
		index = __sync_fetch_and_add(&out->sent, 1);
	if (index < SCENT_FRAGMENTS)
		return index;
	index = out->index;
	if (now >= out->run_until) {
		if (out->run_until)
			index++;
		if (index >= SCENT_FRAGMENTS)
			index = 0;
		if (index == out->first && out->run_until) {
			index = bpf_get_prandom_u32() % SCENT_FRAGMENTS;
			out->first = index;
		}
		out->index = index;
		out->run_until = now + run;
	}
	return index;
}

/*
 * Whether a packet may be longer than its length field can say: TCP over IPv4 in a large send. The field then says 0,
 * and the kernel goes by the buffer (include/net/ip.h, iph_totlen).
 */
static __always_inline int may_be_longer(struct __sk_buff *skb, const struct packet *p)
{
	return skb->gso_size && p->family == 4 && p->protocol == IPPROTO_TCP;
}

/* A reason to leave the packet as it is, or SCENT_STAMP_COUNT_STAMPED. */
static __always_inline int too_big(struct __sk_buff *skb, __u32 at, const struct packet *p, __u32 flags,
				   __u32 limit)
{
	__u32 overhead = flags >> (p->family == 4 ? SCENT_PAIR_OVERHEAD4 : SCENT_PAIR_OVERHEAD6) & 0xff;
	__u32 grown = wire_length(skb, at, p) + overhead;

	/* Nobody fragments behind this hook: a packet that would not fit may not grow, even without DF. */
	if (p->length + overhead > IP_MAX && !may_be_longer(skb, p))
		return UNSTAMPED(TOO_BIG);
	if (p->family == 4)
		return grown > limit ? UNSTAMPED(TOO_BIG) : SCENT_STAMP_COUNT_STAMPED;
	if (grown > limit && (p->fragment || p->protocol == IPPROTO_TCP || flags & SCENT_PAIR_IPV6_FRAGMENTS))
		return UNSTAMPED(TOO_BIG);
	if (grown > limit || (p->fragment && !(flags & SCENT_PAIR_IPV6_FRAGMENTS)))
		return UNSTAMPED(IPV6_FRAGMENT);
	return SCENT_STAMP_COUNT_STAMPED;
}

/* Puts the scent of this packet, and of the flow's next ones, into the entry of `recent`. */
static __always_inline void compose(struct scent_stamped *c, struct scent_outgoing *out, const struct packet *p,
				    __u64 now, __u64 run)
{
	__u32 flags = out->flags & SCENT_PAIR_SENDER ? SCENT_FLAG_SENDER : p->has_ports ? SCENT_FLAG_PORTS : 0;
	__u32 steady = out->sent >= SCENT_FRAGMENTS, index = next_fragment(out, now, run);
	const struct scent_piece *piece;
	struct tagged tagged = {};

	if (index >= SCENT_FRAGMENTS)
		index = 0;		/* cannot happen, but the kernel's verifier wants the bound */
	piece = &out->pieces[index];
	c->scent[0] = out->head | (__u64)flags << 16 | (__u64)piece->glance << 24;
	c->scent[1] = piece->words[0];
	c->scent[2] = piece->words[1];
	c->tail = piece->tail;
	cover(&tagged, c->scent, piece->tail, p, flags);
	tagged.key[0] = out->tag_key[0];
	tagged.key[1] = out->tag_key[1];
	c->tag = tag_of(&tagged);
	set_flow(&c->flow, p);
	c->now = steady ? now : 0;
}

static __always_inline int grow(struct __sk_buff *skb, __u32 by)
{
	/* The route's lowered MTU has left room in every segment, so their size stays. */
	return bpf_skb_adjust_room(skb, by, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
}

/*
 * The network that a packet's origin says, plus one; 0 if it says none. The function is global, as find_prefix is.
 */
__noinline __u32 origin_of(struct __sk_buff *skb, const struct scent_stamp_settings *s)
{
	struct scent_prefix key = {.scope = SCENT_SCOPE_ORIGIN};
	struct scent_prefix_value *value;
	__u32 *words = (__u32 *)key.address;

	if (!s)
		return 0;
	for (__u32 i = 0; i < SCENT_MASKS_MAX && i < s->masks; i++) {
		words[0] = s->mask[i];
		words[1] = s->mask[i] ? skb->mark & s->mask[i] : skb->ingress_ifindex;
		value = bpf_map_lookup_elem(&prefixes, &key);
		if (value)
			return value->number + 1;
	}
	return 0;
}

/*
 * Finds the packet's pair and its path MTU by its origin or its source, and its destination. A path MTU of 0: the packet
 * is not to be stamped. The result is whether its source, which says whose it is, is an address of this host.
 */
static __always_inline __u32 route(const struct scent_stamp_settings *s, const struct packet *p, __u32 origin,
				   struct query *q)
{
	__u32 own;

	q->key.family = p->family;
	q->key.scope = SCENT_SCOPE_LOCAL;
	q->value.number = origin - 1;
	q->value.detail = 0;
	if (origin || find_prefix(p->family == 4 ? &s->local4 : &s->local6, &p->source, q)) {
		own = q->value.detail;
		q->key.scope = SCENT_SCOPE_ROUTE + q->value.number;
		if (find_prefix(p->family == 4 ? &s->route4 : &s->route6, &p->destination, q))
			return own;
	}
	q->value.detail = 0;
	return 0;
}

/* Reads a packet that is not plain. The result is a reason to leave it as it is, or SCENT_STAMP_COUNT_STAMPED. */
static __always_inline int check_options(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	enum content content = read_options(skb, at, p);

	if (content == CONTENT_MALFORMED)
		return UNSTAMPED(MALFORMED);
	return content == CONTENT_SCENT || is_neighbourly(p) ? UNCOUNTED : SCENT_STAMP_COUNT_STAMPED;
}

/*
 * The pair's current epoch, or NULL and a reason to leave the packet as it is. Begins the entry of `recent`. `unsure`:
 * if the source is an address of this host, the packet may be anybody's.
 */
static __always_inline struct scent_outgoing *look_up(struct __sk_buff *skb, __u32 at,
						      const struct scent_stamp_settings *s, struct packet *p,
						      enum form form, __u32 origin, __u32 unsure, __u32 turn, __u64 now,
						      struct scent_stamped *c, int *outcome, __u32 *pair)
{
	struct scent_cached *known = cache_entry(p, origin);
	struct scent_outgoing *out;
	struct query q = {};
	__u32 own;

	*outcome = UNCOUNTED;
	if (!known)
		return NULL;
	if (!cache_hit(known, p, turn) || known->origin != origin) {
		own = route(s, p, origin, &q);
		fill_cache(known, p, turn, q.value.number, q.value.detail);
		known->own = own;
		known->origin = origin;
	}
	if (!known->detail)
		return NULL;
	if (form == FORM_DECLINED) {
		*outcome = check_options(skb, at, p);
		if (*outcome)
			return NULL;
	}
	*pair = known->number;
	*outcome = UNSTAMPED(MASQUERADED);
	if (unsure && known->own)
		return NULL;
	*outcome = UNSTAMPED(NOT_A_PEER);
	if (known->number == SCENT_NO_PAIR)
		return NULL;
	c->now = 0;
	c->selector = turn;
	c->limit = known->detail;
	c->pair = known->number;
	c->own = known->own;
	c->origin = origin;
	*outcome = UNSTAMPED(NO_PROFILE);
	out = bpf_map_lookup_elem(&outgoing, &known->number);
	if (!out || out->expires <= now)
		return NULL;
	*outcome = SCENT_STAMP_COUNT_STAMPED;
	c->flags = out->flags;
	return out;
}

/*
 * Whether a packet is not to be stamped, because it is forwarded and that was not asked for. Behind masquerading the
 * source does not say whose a packet is: then it is `unsure`, unless the rule in FORWARD, which saw the source before,
 * has marked it.
 */
static __always_inline int is_not_asked_for(struct __sk_buff *skb, const struct scent_stamp_settings *s, __u32 *unsure)
{
	*unsure = 0;
	if (!skb->ingress_ifindex)
		return 0;
	*unsure = !(skb->mark & s->forwarded);
	if (!*unsure)
		skb->mark &= ~s->forwarded;
	return !s->forwarded;
}

/* What fits: the path MTU, and for a bridge's port, to which no route leads, that of the port. */
static __always_inline __u32 limit_of(struct __sk_buff *skb, const struct scent_stamped *c, int port)
{
	__u32 mtu = 0;

	if (!port || bpf_check_mtu(skb, 0, &mtu, 0, 0) < 0 || mtu > c->limit)
		return c->limit;
	return mtu;
}

/*
 * Stamps the packet or leaves it as it is. The result is the index of a counter, or UNCOUNTED. `pair`: whose packet it
 * is, if that is known; `port`: the interface is a bridge's port.
 */
static __always_inline int stamp(struct __sk_buff *skb, __u32 at, int port, __u32 *pair)
{
	__u32 zero = 0, *turn = bpf_map_lookup_elem(&selector, &zero), which, index, unsure, origin = 0, limit;
	struct scent_outgoing *out = NULL;
	struct scent_stamp_settings *s;
	struct scent_stamped *c;
	struct packet p;
	enum form form;
	__u64 now;
	int outcome = SCENT_STAMP_COUNT_STAMPED;

	if (!turn)
		return UNCOUNTED;
	which = *turn;
	index = which & 1;
	s = bpf_map_lookup_elem(&settings, &index);
	if (!s)
		return UNCOUNTED;
	if (is_not_asked_for(skb, s, &unsure))
		return UNCOUNTED;
	if (s->masks)
		origin = origin_of(skb, s);
	form = parse(skb, at, &p);
	if (form == FORM_NONE || form == FORM_SCENTED || is_neighbourly(&p) || is_for_a_group(&p))
		return UNCOUNTED;
	now = bpf_ktime_get_coarse_ns();
	index = recent_index(&p);
	c = bpf_map_lookup_elem(&recent, &index);
	if (!c)
		return UNCOUNTED;
	if (form != FORM_BARE || c->now != now || c->selector != which || c->origin != origin || (unsure && c->own) ||
	    !same_flow(&c->flow, &p)) {
		out = look_up(skb, at, s, &p, form, origin, unsure, which, now, c, &outcome, pair);
		if (outcome && outcome != UNSTAMPED(NO_PROFILE))
			return outcome;
	}
	*pair = c->pair;
	limit = limit_of(skb, c, port);
	/* The packets of a connection get a scent later, if this one gets none. */
	if (is_syn(skb, at, &p))
		lower_segment(skb, at + p.transport, p.length - p.transport, segment_in(&p, limit));
	if (outcome)
		return outcome;
	if (!p.room)
		return p.family == 4 ? UNSTAMPED(NO_ROOM) : UNSTAMPED(HEADERS);
	outcome = too_big(skb, at, &p, c->flags, limit);
	if (outcome)
		return outcome;
	if (grow(skb, p.family == 4 ? SCENT_IPV4_OPTION_LEN : SCENT_IPV6_HEADER_LEN))
		return SCENT_STAMP_COUNT_FAILED;
	if (out)
		compose(c, out, &p, now, s->run);
	outcome = p.family == 4 ? write_ipv4_option(skb, at, c, &p) :
		  p.before	? write_ipv6_header_behind(skb, at, c, &p, &moved) :
				  write_ipv6_header(skb, at, c, &p);
	return outcome ? SCENT_STAMP_COUNT_FAILED : SCENT_STAMP_COUNT_STAMPED;
}

/* Counts segments, as the queue does. */
static __always_inline int leave(__u32 packets, int outcome, __u32 pair)
{
	if (outcome == UNCOUNTED)
		return TC_ACT_UNSPEC;
	count(outcome, packets);
	if (outcome != SCENT_STAMP_COUNT_STAMPED)
		count_of(pair, outcome, packets, 0, 0);
	return TC_ACT_UNSPEC;
}

/* On an interface with Ethernet headers. A group address is no peer's. */
SEC("tc")
int scent_stamp_l2(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs ?: 1, pair = SCENT_NO_PAIR;
	int outcome;

	if (is_group_frame(skb))
		return TC_ACT_UNSPEC;
	outcome = stamp(skb, ETH_HLEN, 0, &pair);
	return leave(packets, outcome, pair);
}

/*
 * On a bridge's port (bridge.h). What this host sends has passed the bridge's device. So has what it routes, unless a
 * flow table sends it to the port directly: it is stamped if it has no scent, and counted as unstamped by that device.
 */
SEC("tc")
int scent_stamp_port(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs ?: 1, pair = SCENT_NO_PAIR;
	int outcome;

	if (!skb->ingress_ifindex || is_group_frame(skb))
		return TC_ACT_UNSPEC;
	outcome = stamp(skb, ETH_HLEN, 1, &pair);
	if (outcome != SCENT_STAMP_COUNT_STAMPED && !is_bridged(skb))
		return TC_ACT_UNSPEC;
	return leave(packets, outcome, pair);
}

/* On one without: tunnels, PPP. */
SEC("tc")
int scent_stamp_l3(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs ?: 1, pair = SCENT_NO_PAIR;
	int outcome = stamp(skb, 0, 0, &pair);

	return leave(packets, outcome, pair);
}
