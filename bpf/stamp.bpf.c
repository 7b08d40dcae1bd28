// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stamper at tc egress: behind the IP layer and before segmentation, so that one
 * scent is computed for a large send and the kernel copies it to every segment.
 *
 * Check, grow, write: nothing in the packet changes before growing it has succeeded.
 * Whatever happens the packet goes on, and TC_ACT_UNSPEC lets the programs of others
 * run. bpf/README.md has the order of the hooks.
 */
#include "odd.h"
#include "prefix.h"
#include "remembered.h"
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
	__uint(max_entries, SCENT_STAMP_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCENT_RECENT_SIZE);
	__type(key, __u32);
	__type(value, struct scent_stamped);
} recent SEC(".maps");

/* One at a time on a processor: a Hop-by-Hop header on its way to its place before ours. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[HOP_BY_HOP_MAX]);
} moved SEC(".maps");

#define UNCOUNTED (-1)
#define UNSTAMPED(reason) (SCENT_STAMP_COUNT_UNSTAMPED + SCENT_UNSTAMPED_##reason)

/*
 * Which fragment goes next: each of the first ten packets takes another; then one
 * serves for a while, because receivers merge only segments with equal headers.
 * Processors may race for the end of a run: it ends once or twice.
 */
static __always_inline __u32 take(struct scent_outgoing *out, __u64 now, __u64 run)
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
		out->index = index;
		out->run_until = now + run;
	}
	return index;
}

/*
 * Whether a packet may be longer than its length field tells: TCP over IPv4 in a large send, which then says 0, and the
 * kernel goes by the buffer (include/net/ip.h, iph_totlen).
 */
static __always_inline int may_be_longer(struct __sk_buff *skb, const struct packet *p)
{
	return skb->gso_size && p->family == 4 && p->protocol == IPPROTO_TCP;
}

/* A reason to leave the packet alone, or SCENT_STAMP_COUNT_STAMPED. */
static __always_inline int too_big(struct __sk_buff *skb, __u32 at, const struct packet *p, __u32 flags,
				   __u32 limit)
{
	__u32 overhead = p->family == 4 ? SCENT_IPV4_OPTION_LEN : SCENT_IPV6_HEADER_LEN;
	__u32 grown = wire_length(skb, at, p) + overhead;

	/* Nobody fragments behind this hook: what does not fit may not grow, whatever its flags say. */
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

/* The bytes that change, laid out so that the kernel's verifier finds every word aligned; written in one go. */
struct ipv4_head {
	__u16 padding;
	__u16 header[10];
	__u16 option;
	__u32 scent[6];
	__u16 tail[5];			/* two bytes of fragment, eight of tag */
};

struct ipv6_head {
	__u32 header[9];		/* from the payload length on */
	__u32 option;
	__u32 scent[6];
	__u16 tail[6];
};

/* The scent of this packet and the next ones of its flow, into what is remembered of that. */
static __always_inline void compose(struct scent_stamped *c, struct scent_outgoing *out, const struct packet *p,
				    __u64 now, __u64 run)
{
	__u32 flags = out->flags & SCENT_PAIR_SENDER ? SCENT_FLAG_SENDER : p->has_ports ? SCENT_FLAG_PORTS : 0;
	__u32 steady = out->sent >= SCENT_FRAGMENTS, index = take(out, now, run);
	const struct scent_piece *piece;

	if (index >= SCENT_FRAGMENTS)
		index = 0;		/* cannot be, but the kernel's verifier wants to see it */
	piece = &out->pieces[index];
	c->scent[0] = out->head | (__u64)flags << 16;
	c->scent[1] = piece->words[0];
	c->scent[2] = piece->words[1];
	c->tail = piece->tail;
	c->tag = tag_of(out->tag_key, c->scent, piece->tail, p, flags);
	set_flow(&c->flow, p);
	c->now = steady ? now : 0;
}

static __always_inline void put(__u32 *scent, __u16 *tail, const struct scent_stamped *c)
{
	for (int i = 0; i < 3; i++) {
		scent[2 * i] = c->scent[i];
		scent[2 * i + 1] = c->scent[i] >> 32;
	}
	tail[0] = c->tail;
	for (int i = 0; i < 4; i++)
		tail[1 + i] = c->tag >> 16 * i;
}

static __always_inline int grow(struct __sk_buff *skb, __u32 by)
{
	/* The route's lowered MTU has left room in every segment, so their size stays. */
	return bpf_skb_adjust_room(skb, by, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
}

static __always_inline int write_ipv4(struct __sk_buff *skb, __u32 at, const struct scent_stamped *c, const struct packet *p)
{
	__u32 words = (p->first[0] & 0xf) + SCENT_IPV4_OPTION_LEN / 4;
	__u32 grown = p->length + SCENT_IPV4_OPTION_LEN;
	__u16 length = grown > IP_MAX ? 0 : bpf_htons(grown);
	__u32 first = (p->first[0] & 0xff00) | 0x40 | words | (__u32)length << 16;
	__u16 option = SCENT_IPV4_OPTION_TYPE | SCENT_IPV4_OPTION_LEN << 8;
	__u64 sum = (__u16)~(p->first[2] >> 16);
	struct ipv4_head head = {};

	sum += sum_word((__u32)~p->first[0]) + first + option + c->tail + sum_word(c->tag);
	sum += sum_word(c->scent[0]) + sum_word(c->scent[1]) + sum_word(c->scent[2]);
	head.header[0] = first;
	head.header[1] = first >> 16;
	head.header[2] = p->first[1];
	head.header[3] = p->first[1] >> 16;
	head.header[4] = p->first[2];
	head.header[5] = ~sum_fold(sum);
	head.header[6] = p->source.words[0];
	head.header[7] = p->source.words[0] >> 16;
	head.header[8] = p->destination.words[0];
	head.header[9] = p->destination.words[0] >> 16;
	head.option = option;
	put(head.scent, head.tail, c);
	return bpf_skb_store_bytes(skb, at, head.header, IPV4_LEN + SCENT_IPV4_OPTION_LEN, 0);
}

/* Our header, from its option's type on; what is before that goes into `head`, what is behind it stays zero. */
static __always_inline void put_ipv6(struct ipv6_head *head, __u32 next, const struct scent_stamped *c)
{
	head->option = next | 4 << 8 | SCENT_IPV6_OPTION_TYPE << 16 | (__u32)SCENT_LEN << 24;
	put(head->scent, head->tail, c);
	head->tail[5] = 1;		/* PadN without content */
}

static __always_inline int write_ipv6(struct __sk_buff *skb, __u32 at, const struct scent_stamped *c, const struct packet *p)
{
	__u32 payload = p->length - IPV6_LEN + SCENT_IPV6_HEADER_LEN;
	struct ipv6_head head = {};

	head.header[0] = (p->first[1] & 0xff000000) | IPPROTO_DSTOPTS << 16 | bpf_htons(payload);
	for (int i = 0; i < 2; i++) {
		head.header[1 + 2 * i] = p->source.words[i];
		head.header[2 + 2 * i] = p->source.words[i] >> 32;
		head.header[5 + 2 * i] = p->destination.words[i];
		head.header[6 + 2 * i] = p->destination.words[i] >> 32;
	}
	put_ipv6(&head, p->first[1] >> 16 & 0xff, c);
	return bpf_skb_store_bytes(skb, at + 4, &head, IPV6_LEN - 4 + SCENT_IPV6_HEADER_LEN, 0);
}

/* A Hop-by-Hop header stays first (RFC 8200 section 4.1): it moves into the room, and ours goes behind it. */
static __always_inline int write_behind(struct __sk_buff *skb, __u32 at, const struct scent_stamped *c,
					const struct packet *p)
{
	__u16 payload = bpf_htons(p->length - IPV6_LEN + SCENT_IPV6_HEADER_LEN);
	__u32 zero = 0, length = p->before, next;
	__u8 *header = bpf_map_lookup_elem(&moved, &zero);
	struct ipv6_head head = {};

	asm volatile("" : "+r"(length));	/* the bounds are for the register that is used */
	if (!header || length < 8 || length > HOP_BY_HOP_MAX)
		return -1;
	if (bpf_skb_load_bytes(skb, at + IPV6_LEN + SCENT_IPV6_HEADER_LEN, header, length))
		return -1;
	next = header[0];
	header[0] = IPPROTO_DSTOPTS;
	put_ipv6(&head, next, c);
	return bpf_skb_store_bytes(skb, at + 4, &payload, 2, 0) ||
	       bpf_skb_store_bytes(skb, at + IPV6_LEN, header, length, 0) ||
	       bpf_skb_store_bytes(skb, at + IPV6_LEN + length, &head.option, SCENT_IPV6_HEADER_LEN, 0);
}

/* Which pair the packet is of and how long it may be, by prefixes; a `detail` of 0 if it is none of ours. */
static __always_inline void route(const struct scent_stamp_settings *s, const struct packet *p, struct query *q)
{
	q->key.family = p->family;
	q->key.scope = SCENT_SCOPE_LOCAL;
	if (find(p->family == 4 ? &s->local4 : &s->local6, &p->source, q)) {
		q->key.scope = SCENT_SCOPE_ROUTE + q->value.number;
		if (find(p->family == 4 ? &s->route4 : &s->route6, &p->destination, q))
			return;
	}
	q->value.detail = 0;
}

/* Why a packet that is not plain is left alone, or SCENT_STAMP_COUNT_STAMPED. */
static __always_inline int unfit(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	enum content content = read_odd(skb, at, p);

	if (content == CONTENT_MALFORMED)
		return UNSTAMPED(MALFORMED);
	return content == CONTENT_SCENT || is_neighbourly(p) ? UNCOUNTED : SCENT_STAMP_COUNT_STAMPED;
}

/* The pair's current epoch, or NULL and a reason to leave the packet alone. What a flow's packets share goes into `c`. */
static __always_inline struct scent_outgoing *look_up(struct __sk_buff *skb, __u32 at,
						      const struct scent_stamp_settings *s, struct packet *p,
						      enum form form, __u32 turn, __u64 now, struct scent_stamped *c,
						      int *kept)
{
	struct scent_cached *known = cached(p);
	struct scent_outgoing *out;
	struct query q = {};

	*kept = UNCOUNTED;
	if (!known)
		return NULL;
	if (!remembers(known, p, turn)) {
		route(s, p, &q);
		remember(known, p, turn, q.value.number, q.value.detail);
	}
	if (!known->detail)
		return NULL;
	if (form == FORM_DECLINED) {
		*kept = unfit(skb, at, p);
		if (*kept)
			return NULL;
	}
	*kept = UNSTAMPED(NOT_A_PEER);
	if (known->number == SCENT_NO_PAIR)
		return NULL;
	*kept = UNSTAMPED(NO_PROFILE);
	out = bpf_map_lookup_elem(&outgoing, &known->number);
	if (!out || out->expires <= now)
		return NULL;
	c->now = 0;
	c->selector = turn;
	c->flags = out->flags;
	c->limit = known->detail;
	return out;
}

/* What becomes of the packet, as an index of its counter. */
static __always_inline int stamp(struct __sk_buff *skb, __u32 at)
{
	__u32 zero = 0, *turn = bpf_map_lookup_elem(&selector, &zero), which, index;
	struct scent_outgoing *out = NULL;
	struct scent_stamp_settings *s;
	struct scent_stamped *c;
	struct packet p;
	enum form form;
	__u64 now;
	int kept;

	if (!turn)
		return UNCOUNTED;
	which = *turn;
	index = which & 1;
	s = bpf_map_lookup_elem(&settings, &index);
	if (!s)
		return UNCOUNTED;
	if (skb->ingress_ifindex) {
		if (!(skb->mark & s->forwarded))
			return UNCOUNTED;
		skb->mark &= ~s->forwarded;
	}
	form = parse(skb, at, &p);
	if (form == FORM_NONE || form == FORM_SCENTED || is_neighbourly(&p) || is_for_a_group(&p))
		return UNCOUNTED;
	now = bpf_ktime_get_coarse_ns();
	index = recent_index(&p);
	c = bpf_map_lookup_elem(&recent, &index);
	if (!c)
		return UNCOUNTED;
	if (form != FORM_BARE || c->now != now || c->selector != which || !same_flow(&c->flow, &p)) {
		out = look_up(skb, at, s, &p, form, which, now, c, &kept);
		if (!out)
			return kept;
	}
	if (!p.room)
		return p.family == 4 ? UNSTAMPED(NO_ROOM) : UNSTAMPED(HEADERS);
	kept = too_big(skb, at, &p, c->flags, c->limit);
	if (kept)
		return kept;
	if (grow(skb, p.family == 4 ? SCENT_IPV4_OPTION_LEN : SCENT_IPV6_HEADER_LEN))
		return SCENT_STAMP_COUNT_FAILED;
	if (out)
		compose(c, out, &p, now, s->run);
	kept = p.family == 4 ? write_ipv4(skb, at, c, &p) :
	       p.before	    ? write_behind(skb, at, c, &p) :
			      write_ipv6(skb, at, c, &p);
	return kept ? SCENT_STAMP_COUNT_FAILED : SCENT_STAMP_COUNT_STAMPED;
}

/* Segments are counted, as the queue counts them. */
static __always_inline int leave(__u32 packets, int outcome)
{
	__u32 index = outcome;
	__u64 *count;

	if (outcome != UNCOUNTED) {
		count = bpf_map_lookup_elem(&counters, &index);
		if (count)
			*count += packets;
	}
	return TC_ACT_UNSPEC;
}

/* On an interface with Ethernet headers. Group addresses are nobody's peer. */
SEC("tc")
int scent_stamp_l2(struct __sk_buff *skb)
{
	__u8 *ethernet = (void *)(long)skb->data;
	__u32 packets = skb->gso_segs ?: 1;

	if ((void *)(ethernet + ETH_HLEN) > (void *)(long)skb->data_end || ethernet[0] & 1)
		return TC_ACT_UNSPEC;
	return leave(packets, stamp(skb, ETH_HLEN));
}

/* On one without: tunnels, PPP. */
SEC("tc")
int scent_stamp_l3(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs ?: 1;

	return leave(packets, stamp(skb, 0));
}
