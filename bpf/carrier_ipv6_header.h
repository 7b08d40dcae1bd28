/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The carrier of IPv6 packets: a Destination Options header of 40 bytes, behind the fixed header and a Hop-by-Hop
 * header. The stamper writes it, the verifier takes it off (scentd/wire/README.md, section 5.2).
 */
#ifndef SCENT_CARRIER_IPV6_HEADER_H
#define SCENT_CARRIER_IPV6_HEADER_H

#include "scent.h"

#define HOP_BY_HOP_MAX 2048

/* Of our header the length, the option's type and the option's length, one after the other as in memory. */
#define IPV6_OPTION ((SCENT_IPV6_HEADER_LEN / 8 - 1) | SCENT_IPV6_OPTION_TYPE << 8 | SCENT_LEN << 16)
/* The same with the magic behind them: the first six bytes of our header but its next header. */
#define IPV6_SCENT (IPV6_OPTION | (__u64)bpf_htons(SCENT_MAGIC) << 24)

/* The fixed header from the payload length on, and our header, as they leave; every word is aligned. */
struct ipv6_head {
	__u32 header[9];
	__u32 option;			/* next header, IPV6_OPTION */
	__u32 scent[6];
	__u16 tail[6];			/* two bytes of fragment, eight of tag, a PadN */
};

/* Fills in our header and leaves the fixed one alone. */
static __always_inline void put_ipv6_header(struct ipv6_head *head, __u32 next, const struct scent_stamped *c)
{
	head->option = next | (__u32)IPV6_OPTION << 8;
	put_scent(head->scent, head->tail, c);
	head->tail[5] = 1;		/* PadN without content */
}

static __always_inline int write_ipv6_header(struct __sk_buff *skb, __u32 at, const struct scent_stamped *c,
					     const struct packet *p)
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
	put_ipv6_header(&head, p->first[1] >> 16 & 0xff, c);
	return bpf_skb_store_bytes(skb, at + 4, &head, IPV6_LEN - 4 + SCENT_IPV6_HEADER_LEN, 0);
}

/*
 * A Hop-by-Hop header stays first (RFC 8200 section 4.1): it moves into the room, and ours goes behind it. `buffers` is
 * a map of one buffer of HOP_BY_HOP_MAX bytes; only the stamper's object has it.
 */
static __always_inline int write_ipv6_header_behind(struct __sk_buff *skb, __u32 at, const struct scent_stamped *c,
						    const struct packet *p, void *buffers)
{
	__u16 payload = bpf_htons(p->length - IPV6_LEN + SCENT_IPV6_HEADER_LEN);
	__u32 zero = 0, length = p->before, next;
	__u8 *header = bpf_map_lookup_elem(buffers, &zero);
	struct ipv6_head head = {};

	if (!header || length < 8 || length > HOP_BY_HOP_MAX)
		return -1;
	/* It is a multiple of eight. A mask's bounds stay with the register, also where Linux 6.1 has forgotten these. */
	asm volatile("" : "+r"(length));
	length = ((length - 8) & (HOP_BY_HOP_MAX - 8)) + 8;
	if (bpf_skb_load_bytes(skb, at + IPV6_LEN + SCENT_IPV6_HEADER_LEN, header, length))
		return -1;
	next = header[0];
	header[0] = IPPROTO_DSTOPTS;
	put_ipv6_header(&head, next, c);
	return bpf_skb_store_bytes(skb, at + 4, &payload, 2, 0) ||
	       bpf_skb_store_bytes(skb, at + IPV6_LEN, header, length, 0) ||
	       bpf_skb_store_bytes(skb, at + IPV6_LEN + length, &head.option, SCENT_IPV6_HEADER_LEN, 0);
}

static __always_inline int strip_ipv6_header(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	__u32 payload = p->length - IPV6_LEN - SCENT_IPV6_HEADER_LEN;

	if (bpf_skb_adjust_room(skb, -SCENT_IPV6_HEADER_LEN, BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return -1;
	p->first[1] = (p->first[1] & 0xff000000) | p->next << 16 | bpf_htons(payload);
	return bpf_skb_store_bytes(skb, at + 4, &p->first[1], 4, BPF_F_RECOMPUTE_CSUM);
}

#endif
