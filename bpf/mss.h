/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Lowers the longest segment that a SYN announces, so that TCP leaves room for a scent also where no MTU can be lowered
 * (scentd/core/packet/mss.py does the same). A SYN is rare, so nothing behind is_syn() is fast.
 */
#ifndef SCENT_MSS_H
#define SCENT_MSS_H

#include "packet.h"

#define TCP_LEN 20
#define TCP_OPTIONS_MAX 40
#define TCP_CHECKSUM_AT 16
#define TCP_FLAGS_AT 13
#define TCP_SYN 2
#define TCP_MSS 2			/* the option's kind, and its length below */
#define TCP_MSS_LEN 4
#define SEGMENT_LEAST 88		/* Linux sends no shorter ones */

/* A scan of a TCP header's options. */
struct segments {
	__u32 offset;			/* of the next option, from the beginning of the header */
	__u32 length;			/* of the header */
	__u32 longest;			/* segment that may be announced */
};

/* Whether this is a SYN or a SYN-ACK. The packet's headers have been read. */
static __always_inline int is_syn(struct __sk_buff *skb, __u32 at, const struct packet *p)
{
	__u32 offset = p->transport + TCP_FLAGS_AT;
	__u8 flags = 0, *from;

	if (p->protocol != IPPROTO_TCP || p->fragment || skb->gso_size || offset >= p->length)
		return 0;
	from = (void *)(long)skb->data + (at & 0x1f) + (offset & 0x7f);
	/* One register for the check and the access: Linux 6.1 does not see that two hold the same. */
	asm volatile("" : "+r"(from));
	if (offset <= 0x7f && (void *)(from + 1) <= end_of(skb))
		flags = *from;
	else if (bpf_skb_load_bytes(skb, at + offset, &flags, 1))
		return 0;
	return flags & TCP_SYN;
}

/* Lowers what the option at the scan's offset announces. It returns 0, or the kernel's refusal. */
static __always_inline int lower_option(struct __sk_buff *skb, __u32 tcp, const struct segments *s)
{
	__u16 announced, lowered = bpf_htons(s->longest), from, to;

	if (bpf_skb_load_bytes(skb, tcp + s->offset + 2, &announced, 2))
		return -1;
	if (bpf_ntohs(announced) <= s->longest)
		return 0;
	/* A value at an odd offset is a part of two words of the checksum. */
	from = s->offset & 1 ? __builtin_bswap16(announced) : announced;
	to = s->offset & 1 ? __builtin_bswap16(lowered) : lowered;
	if (bpf_l4_csum_replace(skb, tcp + TCP_CHECKSUM_AT, from, to, 2))
		return -1;
	return bpf_skb_store_bytes(skb, tcp + s->offset + 2, &lowered, 2, 0);
}

/* One step of the scan, and whether there is another; `tcp` is where the TCP header is. */
__noinline int lower_next_option(struct __sk_buff *skb, __u32 tcp, struct segments *s)
{
	__u8 option[2] = {};

	if (!s || s->offset >= s->length || bpf_skb_load_bytes(skb, tcp + s->offset, option, 1) || option[0] == 0)
		return 0;
	if (option[0] == 1) {
		s->offset++;
		return 1;
	}
	if (s->offset + 1 >= s->length || bpf_skb_load_bytes(skb, tcp + s->offset, option, 2) || option[1] < 2 ||
	    s->offset + option[1] > s->length)
		return 0;
	if (option[0] == TCP_MSS && option[1] == TCP_MSS_LEN && lower_option(skb, tcp, s))
		return 0;
	s->offset += option[1];
	return 1;
}

/* Lets the SYN, whose TCP header is at `tcp` and has at most `room` bytes, announce no longer segment than `longest`. */
__noinline int lower_segment(struct __sk_buff *skb, __u32 tcp, __u32 room, __u32 longest)
{
	struct segments s = {.offset = TCP_LEN, .longest = longest};
	__u8 length = 0;

	if (bpf_skb_load_bytes(skb, tcp + 12, &length, 1))
		return 0;
	s.length = (length >> 4) * 4;
	if (s.length > room)
		return 0;
	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		if (!lower_next_option(skb, tcp, &s))
			break;
		END_OF_LOOP();
	}
	return 0;
}

/* The longest segment whose packets fit with a scent in so many bytes. */
static __always_inline __u32 segment_in(const struct packet *p, __u32 mtu)
{
	__u32 beside = TCP_LEN + (p->family == 4 ? IPV4_LEN + SCENT_IPV4_OPTION_LEN : IPV6_LEN + SCENT_IPV6_HEADER_LEN);

	return mtu > beside + SEGMENT_LEAST ? mtu - beside : SEGMENT_LEAST;
}

#endif
