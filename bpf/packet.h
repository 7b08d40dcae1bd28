/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What both programs see of a packet. Only its plain forms are read here:
 *
 *     IPv4 without options, or with our option alone
 *     IPv6 | [our Destination Options] | [Fragment] | what is no extension header
 *
 * Everything else is declined: the verifier leaves it to the queue, the stamper reads it with odd.h.
 * Lengths come first; nothing is believed here.
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
#define PORTLESS_MIN 1280		/* README.md of the wire, section 4.2 */
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

/* The first eight bytes of our IPv6 header but its next header: length, type, option length, magic. */
#define IPV6_SCENT 0xe75c221e04ULL
#define IPV4_SCENT 0xe75c249eU

/* The kernel's verifier took a last instruction that falls through into the head of its loop for a jump back (6.1). */
#define END_OF_LOOP() asm volatile("goto +0")

enum form {
	FORM_NONE = 0,			/* not IP, or cut short: the kernel's business */
	FORM_BARE = 1,
	FORM_SCENTED = 2,
	FORM_DECLINED = 3,
};

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

/* So many bytes of the buffer for direct access, pulled out of fragments if need be; NULL if there are not so many. */
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
 * Read anew each time: a copy that the compiler keeps in the lower half of a register is no end of a packet to the
 * kernel's verifier.
 */
static __always_inline void *end_of(struct __sk_buff *skb)
{
	return (void *)(long)*(volatile __u32 *)&skb->data_end;
}

/* Whether the variable is filled from the packet: at once where its bytes can be accessed directly. */
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

static __always_inline void find_ports(struct __sk_buff *skb, __u32 at, struct packet *p)
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

static __always_inline enum form parse_ipv4(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	__u8 *ip = bytes(skb, at + IPV4_LEN);
	enum form form = FORM_BARE;
	__u32 flags;

	if (!ip)
		return FORM_NONE;
	ip += at;
	p->family = 4;
	p->first[0] = *(__u32 *)ip;
	p->first[1] = *(__u32 *)(ip + 4);
	p->first[2] = *(__u32 *)(ip + 8);
	p->source.words[0] = *(__u32 *)(ip + 12);
	p->source.words[1] = 0;
	p->destination.words[0] = *(__u32 *)(ip + 16);
	p->destination.words[1] = 0;
	p->length = bpf_ntohs(p->first[0] >> 16);
	p->protocol = p->first[2] >> 8 & 0xff;
	flags = bpf_ntohs(p->first[1] >> 16);
	p->fragment = (flags & 0x3fff) != 0;
	p->transport = IPV4_LEN;
	if ((p->first[0] & 0xff) == 0x4e) {
		__u32 option;

		if (!LOAD(skb, at + IPV4_LEN, option) || option != IPV4_SCENT)
			return FORM_DECLINED;
		p->transport += SCENT_IPV4_OPTION_LEN;
		form = FORM_SCENTED;
	} else if ((p->first[0] & 0xff) != 0x45) {
		return FORM_DECLINED;
	}
	/* Short frames are padded: the buffer may be longer than the packet. Zero is a segment of over 64 KB. */
	if (p->length < p->transport || p->length > skb->len - at)
		return FORM_DECLINED;
	find_ports(skb, at, p);
	return form;
}

static __always_inline enum form parse_ipv6(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	__u8 *ip = bytes(skb, at + IPV6_LEN);
	enum form form = FORM_BARE;
	__u64 word;

	if (!ip)
		return FORM_NONE;
	ip += at;
	p->family = 6;
	p->first[0] = *(__u32 *)ip;
	p->first[1] = *(__u32 *)(ip + 4);
	p->source.words[0] = *(__u64 *)(ip + 8);
	p->source.words[1] = *(__u64 *)(ip + 16);
	p->destination.words[0] = *(__u64 *)(ip + 24);
	p->destination.words[1] = *(__u64 *)(ip + 32);
	p->length = IPV6_LEN + bpf_ntohs(p->first[1] & 0xffff);
	p->protocol = p->first[1] >> 16 & 0xff;
	p->fragment = 0;
	p->transport = IPV6_LEN;
	if ((p->first[0] & 0xf0) != 0x60)
		return FORM_DECLINED;
	if (p->protocol == IPPROTO_DSTOPTS) {
		if (!LOAD(skb, at + IPV6_LEN, word) || (word >> 8 & 0xffffffffff) != IPV6_SCENT)
			return FORM_DECLINED;
		p->protocol = p->next = word & 0xff;
		p->transport += SCENT_IPV6_HEADER_LEN;
		form = FORM_SCENTED;
	}
	if (p->protocol == IPPROTO_FRAGMENT) {
		if (bpf_skb_load_bytes(skb, at + p->transport, &word, IPV6_FRAGMENT_LEN))
			return FORM_DECLINED;
		p->fragment = (word >> 16 & 0xf9ff) != 0;	/* offset and "more fragments", as in memory */
		p->room = p->fragment;	/* an atomic fragment is reassembled, too, and dropped behind our header */
		p->transport += IPV6_FRAGMENT_LEN;
		p->protocol = word & 0xff;
		if (!(word >> 16 & 0xf8ff) && is_extension(p->protocol))
			return FORM_DECLINED;
	} else if (is_extension(p->protocol)) {
		return FORM_DECLINED;
	}
	if (p->length < p->transport || p->length > skb->len - at)
		return FORM_DECLINED;
	find_ports(skb, at, p);
	return form;
}

/* The packet's form. `at` is where the IP header is: behind an Ethernet header, or at once. */
static __always_inline enum form parse(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	p->ports = 0;
	p->has_ports = 0;
	p->room = 1;
	p->before = 0;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, at, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, at, p);
	return FORM_NONE;
}

/*
 * Without these an IPv6 neighbour is not found: they are never scented and never judged. Only a neighbour's are meant:
 * RFC 4861 section 7.1 wants hop limit 255, RFC 2710 section 3 and RFC 3810 section 5 send with 1.
 */
static __always_inline int is_neighbourly(const struct packet *p)
{
	__u32 type = p->ports & 0xff, hops = p->first[1] >> 24;

	if (p->family != 6 || p->protocol != IPPROTO_ICMPV6 || p->fragment)
		return 0;
	return (hops == 255 && type >= 133 && type <= 137) ||
	       (hops == 1 && ((type >= 130 && type <= 132) || type == 143));
}

/* Nobody's peer: multicast, and what IPv4 keeps for broadcast. */
static __always_inline int is_for_a_group(const struct packet *p)
{
	return p->family == 4 ? (p->destination.words[0] & 0xe0) == 0xe0 : (p->destination.words[0] & 0xff) == 0xff;
}

/* How long the packet is on the wire, where the kernel cuts a large send into segments: the longest of them. */
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
