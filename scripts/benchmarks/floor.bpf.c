// SPDX-License-Identifier: GPL-2.0-only
/*
 * The least that programs at tc can do for a header that goes in at one end and out at the other: make room, write it,
 * take it off. No tag, no table, no decision: what these cost no stamper and verifier at these hooks can save.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../bpf/scent_wire.h"

#define FLAGS (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)
#define IPV4_LEN 20
#define IPV6_LEN 40

char LICENSE[] SEC("license") = "GPL";

/* 16-bit words, as in memory. */
static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* IPv4: 36 NOPs. By difference (RFC 1624): the first word, the length, and 18 words of NOPs. */
static __always_inline int ipv4(struct __sk_buff *skb, int by)
{
	__u16 head[(IPV4_LEN + SCENT_IPV4_OPTION_LEN) / 2];
	__u32 sum;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, IPV4_LEN) || (head[0] & 0xff) != (by > 0 ? 0x45 : 0x4e) ||
	    bpf_skb_adjust_room(skb, by, BPF_ADJ_ROOM_NET, FLAGS))
		return TC_ACT_UNSPEC;
	sum = (__u16)~head[5] + (__u16)~head[0] + (__u16)~head[1];
	head[0] = (head[0] & 0xff00) | (by > 0 ? 0x4e : 0x45);
	head[1] = bpf_htons(bpf_ntohs(head[1]) + by);
	sum += head[0] + head[1] + SCENT_IPV4_OPTION_LEN / 2 * (by > 0 ? 0x0101 : 0xfefe);
	head[5] = ~folded(sum);
	__builtin_memset(head + IPV4_LEN / 2, 1, SCENT_IPV4_OPTION_LEN);
	if (by > 0)
		bpf_skb_store_bytes(skb, ETH_HLEN, head, sizeof(head), 0);
	else
		bpf_skb_store_bytes(skb, ETH_HLEN, head, 12, BPF_F_RECOMPUTE_CSUM);
	return TC_ACT_UNSPEC;
}

/* IPv6: a Destination Options header of 40 bytes, whose next header is all that matters here. */
static __always_inline int ipv6(struct __sk_buff *skb, int by)
{
	__u8 head[SCENT_IPV6_HEADER_LEN + 8];
	__u16 length;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, head, 8) || (head[6] == 60) != (by < 0))
		return TC_ACT_UNSPEC;
	if (by < 0 && bpf_skb_load_bytes(skb, ETH_HLEN + IPV6_LEN, head + 8, 1))
		return TC_ACT_UNSPEC;
	if (bpf_skb_adjust_room(skb, by, BPF_ADJ_ROOM_NET, FLAGS))
		return TC_ACT_UNSPEC;
	length = bpf_htons(bpf_ntohs(*(__u16 *)(head + 4)) + by);
	*(__u16 *)(head + 4) = length;
	if (by > 0) {
		__builtin_memset(head + 8, 0, SCENT_IPV6_HEADER_LEN);
		head[8] = head[6];
		head[9] = SCENT_IPV6_HEADER_LEN / 8 - 1;
		head[6] = 60;
		bpf_skb_store_bytes(skb, ETH_HLEN, head, 8, 0);
		bpf_skb_store_bytes(skb, ETH_HLEN + IPV6_LEN, head + 8, SCENT_IPV6_HEADER_LEN, 0);
	} else {
		head[6] = head[8];
		bpf_skb_store_bytes(skb, ETH_HLEN, head, 8, BPF_F_RECOMPUTE_CSUM);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int floor_grow(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return ipv4(skb, SCENT_IPV4_OPTION_LEN);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return ipv6(skb, SCENT_IPV6_HEADER_LEN);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int floor_shrink(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return ipv4(skb, -SCENT_IPV4_OPTION_LEN);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return ipv6(skb, -SCENT_IPV6_HEADER_LEN);
	return TC_ACT_UNSPEC;
}
