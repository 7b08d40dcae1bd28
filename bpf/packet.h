/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet in both programs: its fields, access to its bytes, questions about its protocol. parse.h and options.h fill
 * struct packet in.
 */
#ifndef SCENT_PACKET_H
#define SCENT_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "scent_wire.h"
#include "scent_maps.h"

#define IPV4_LEN 20
#define IPV6_LEN 40
#define IPV6_FRAGMENT_LEN 8
#define IP_MAX 65535

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136

/* The kernel's verifier took a last instruction that falls through into the head of its loop for a jump back (6.1). */
#define END_OF_LOOP() asm volatile("goto +0")

/* As in memory; of IPv4 the low half of the first word. */
struct address {
	__u64 words[2];
};

struct packet {
	__u32 family;			/* 4 or 6 */
	__u32 length;			/* of the IP packet, bytes */
	__u32 protocol;			/* as the tag has it */
	__u32 next;			/* IPv6, FORM_SCENTED: what our header names as the next */
	__u32 fragment;			/* a part of a packet */
	__u32 room;			/* for a scent among the headers */
	__u32 before;			/* IPv6: bytes between the fixed header and the scent's place */
	__u32 has_ports;
	__u32 ports;			/* the transport's first four bytes as in memory, if `has_ports` or ICMP */
	__u32 transport;		/* where they are, from the IP header */
	__u32 first[3];			/* the header's first twelve bytes as in memory */
	struct address source, destination;
};

/* Makes `need` bytes of the buffer accessible, which may pull them out of its fragments; NULL if it has fewer. */
static __always_inline void *bytes(struct __sk_buff *skb, __u32 need)
{
	if ((void *)(long)skb->data + need > (void *)(long)skb->data_end) {
		if (bpf_skb_pull_data(skb, need))
			return NULL;
		if ((void *)(long)skb->data + need > (void *)(long)skb->data_end)
			return NULL;
	}
	return (void *)(long)skb->data;
}

/*
 * Reads the end of the buffer anew each time: the kernel's verifier does not take a copy that the compiler keeps in the
 * lower half of a register for an end.
 */
static __always_inline void *end_of(struct __sk_buff *skb)
{
	return (void *)(long)*(volatile __u32 *)&skb->data_end;
}

/* Fills the variable from the packet, directly where its bytes are accessible; false if it has no such bytes. */
#define LOAD(skb, at, variable)                                                                                 \
	({                                                                                                      \
		typeof(variable) *from_ = (void *)(long)(skb)->data + (at);                                     \
		int failed_ = 0;                                                                                \
		if ((void *)(from_ + 1) <= end_of(skb))                                                         \
			(variable) = *from_;                                                                    \
		else                                                                                            \
			failed_ = bpf_skb_load_bytes(skb, at, &(variable), sizeof(variable)) != 0;              \
		!failed_;                                                                                       \
	})

static __always_inline int is_extension(__u32 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_DSTOPTS;
}

static __always_inline int may_have_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_UDPLITE;
}

static __always_inline void read_ports(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	__u32 protocol = p->protocol;
	__u8 *four;

	p->ports = 0;
	p->has_ports = 0;
	if (p->fragment || p->transport + 4 > p->length)
		return;
	if (may_have_ports(protocol))
		p->has_ports = 1;
	else if (protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6)
		return;
	four = (void *)(long)skb->data + at + (p->transport & 0x7f);	/* a bound that the kernel's verifier sees */
	if ((void *)(four + 4) <= (void *)(long)skb->data_end)
		p->ports = *(__u32 *)four;
	else if (bpf_skb_load_bytes(skb, at + p->transport, &p->ports, 4))
		p->has_ports = 0;
}

/*
 * Whether the packet serves to find IPv6 neighbours: such packets are never scented and never judged. They come from a
 * neighbour: RFC 4861 section 7.1 wants hop limit 255, RFC 2710 section 3 and RFC 3810 section 5 send with 1.
 */
static __always_inline int is_neighbourly(const struct packet *p)
{
	__u32 type = p->ports & 0xff, hops = p->first[1] >> 24;

	if (p->family != 6 || p->protocol != IPPROTO_ICMPV6 || p->fragment)
		return 0;
	return (hops == 255 && type >= 133 && type <= 137) ||
	       (hops == 1 && ((type >= 130 && type <= 132) || type == 143));
}

/* Whether the destination is a group's: multicast, or the addresses that IPv4 reserves for broadcast. */
static __always_inline int is_for_a_group(const struct packet *p)
{
	return p->family == 4 ? (p->destination.words[0] & 0xe0) == 0xe0 : (p->destination.words[0] & 0xff) == 0xff;
}

/* The packet's length on the wire; of a large send, which the kernel cuts into segments, that of the longest. */
static __always_inline __u32 wire_length(struct __sk_buff *skb, __u32 at, const struct packet *p)
{
	__u32 header = 8;
	__u8 offset;

	if (!skb->gso_size)
		return p->length;
	if (p->protocol == IPPROTO_TCP && !bpf_skb_load_bytes(skb, at + p->transport + 12, &offset, 1))
		header = (offset >> 4) * 4;
	return p->transport + header + skb->gso_size;
}

/* -- ones' complement sums (RFC 1071, RFC 1624), of 16-bit words as in memory --- */

static __always_inline __u64 sum_word(__u64 word)
{
	return (word & 0xffffffff) + (word >> 32);
}

static __always_inline __u16 sum_fold(__u64 sum)
{
	sum = sum_word(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

#endif
