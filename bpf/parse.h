/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both programs read a packet's plain forms here:
 *
 *     IPv4 without options, or with our option alone
 *     IPv6 | [our Destination Options] | [Fragment] | what is no extension header
 *
 * They decline every other form: the verifier leaves the packet to the queue, the stamper reads it with options.h.
 * The parser checks lengths first and believes no field.
 */
#ifndef SCENT_PARSE_H
#define SCENT_PARSE_H

#include "carrier_ipv4_option.h"
#include "carrier_ipv6_header.h"

enum form {
	FORM_NONE = 0,			/* not IP, or cut short: the kernel's business */
	FORM_BARE = 1,
	FORM_SCENTED = 2,
	FORM_DECLINED = 3,
};

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
	read_ports(skb, at, p);
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
	read_ports(skb, at, p);
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

#endif
