/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The carrier of IPv4 packets: an option of 36 bytes, the first behind the fixed header. The stamper writes it, the
 * verifier takes it off (scentd/wire/README.md, section 5.1).
 */
#ifndef SCENT_CARRIER_IPV4_OPTION_H
#define SCENT_CARRIER_IPV4_OPTION_H

#include "scent.h"

/* The option's type and length, one after the other as in memory, and with the magic behind them. */
#define IPV4_OPTION (SCENT_IPV4_OPTION_TYPE | SCENT_IPV4_OPTION_LEN << 8)
#define IPV4_SCENT (IPV4_OPTION | (__u32)bpf_htons(SCENT_MAGIC) << 16)

/*
 * The header and the option as they leave. The padding aligns every word, which the kernel's verifier asks for; one
 * store writes everything behind it.
 */
struct ipv4_head {
	__u16 padding;
	__u16 header[10];
	__u16 option;
	__u32 scent[6];
	__u16 tail[5];			/* two bytes of fragment, eight of tag */
};

static __always_inline int write_ipv4_option(struct __sk_buff *skb, __u32 at, const struct scent_stamped *c,
					     const struct packet *p)
{
	__u32 words = (p->first[0] & 0xf) + SCENT_IPV4_OPTION_LEN / 4;
	__u32 grown = p->length + SCENT_IPV4_OPTION_LEN;
	__u16 length = grown > IP_MAX ? 0 : bpf_htons(grown);
	__u32 first = (p->first[0] & 0xff00) | 0x40 | words | (__u32)length << 16;
	__u16 option = IPV4_OPTION;
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
	put_scent(head.scent, head.tail, c);
	return bpf_skb_store_bytes(skb, at, head.header, IPV4_LEN + SCENT_IPV4_OPTION_LEN, 0);
}

static __always_inline int strip_ipv4_option(struct __sk_buff *skb, __u32 at, struct packet *p,
					     const struct scent_words *w)
{
	__u32 length = p->length - SCENT_IPV4_OPTION_LEN, before = p->first[0];
	__u64 sum = (__u16)~(p->first[2] >> 16);

	if (bpf_skb_adjust_room(skb, -SCENT_IPV4_OPTION_LEN, BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return -1;
	/* By difference (RFC 1624): a header that came damaged stays so, and the kernel drops it. */
	p->first[0] = (before & 0xff00) | 0x45 | (__u32)bpf_htons(length) << 16;
	sum += sum_word((__u32)~before) + p->first[0] + (__u16)~IPV4_OPTION;
	sum += sum_word(~w->scent[0]) + sum_word(~w->scent[1]) + sum_word(~w->scent[2]);
	sum += sum_word(~w->tag) + (__u16)~w->tail;
	p->first[2] = (p->first[2] & 0xffff) | (__u32)(__u16)~sum_fold(sum) << 16;
	return bpf_skb_store_bytes(skb, at, p->first, 12, BPF_F_RECOMPUTE_CSUM);
}

#endif
