/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The stamper reads packets here that are not plain (parse.h): IPv4 with options, IPv6 with extension headers beside
 * Fragment. It takes the same steps, in the same order and with the same limits, as scentd/wire/ip.py. Such packets are
 * rare, so nothing here is fast. The functions are global: the kernel's verifier looks at each of them by itself.
 */
#ifndef SCENT_OPTIONS_H
#define SCENT_OPTIONS_H

#include "parse.h"

/* Of a Destination Options header: each option with padding around it, and the end. */
#define STEPS_MAX (SCENT_OPTIONS_MAX + (SCENT_OPTIONS_MAX + 1) * SCENT_PADDING_MAX + 1)
#define IPV4_OPTIONS_MAX 40

/* The extension headers of an IPv6 packet. read_extensions() takes the first two members and fills in the rest. */
struct extensions {
	__u32 protocol;			/* before: the first header's; after: the first that is no extension header */
	__u32 length;			/* of the packet */
	__u32 transport;
	__u32 before;			/* bytes of a Hop-by-Hop header in its place */
	__u32 fragment;
	__u32 room;
};

enum content {
	CONTENT_FOREIGN = 0,
	CONTENT_SCENT = 1,
	CONTENT_ROUTED = 2,		/* no scent, and a source route */
	CONTENT_MALFORMED = 3,
};

/* A scan of a header's options, and its findings. */
struct scan {
	__u32 offset;			/* of the next option, from the beginning of the header */
	__u32 length;			/* of the header */
	__u32 padding;			/* bytes in a row before the next option */
	__u32 options;			/* that are no padding */
	__u32 scents;
	__u32 routed;			/* a source route among them */
};

enum step {
	STEP_NEXT = 0,
	STEP_END = 1,
	STEP_MALFORMED = 2,
};

/*
 * One step of a scan. It is a function of its own: else the kernel's verifier would follow each scan with each state of
 * its findings.
 */
__noinline int ipv4_option_step(struct __sk_buff *skb, __u32 at, struct scan *s)
{
	__u8 option[4] = {};

	if (!s || s->offset >= s->length || bpf_skb_load_bytes(skb, at + s->offset, option, 1) || option[0] == 0)
		return STEP_END;
	if (option[0] == 1) {
		s->offset++;
		return STEP_NEXT;
	}
	if (s->offset + 1 < s->length && bpf_skb_load_bytes(skb, at + s->offset, option, 2))
		return STEP_MALFORMED;
	if (option[0] == 131 || option[0] == 137)
		s->routed = 1;
	if (option[1] < 2 || s->offset + option[1] > s->length)
		return STEP_MALFORMED;
	if (option[0] == SCENT_IPV4_OPTION_TYPE && option[1] >= 4 &&
	    !bpf_skb_load_bytes(skb, at + s->offset, option, 4) && (option[2] << 8 | option[3]) == SCENT_MAGIC) {
		if (option[1] != SCENT_IPV4_OPTION_LEN || s->scents)
			return STEP_MALFORMED;
		s->scents = 1;
	}
	s->offset += option[1];
	return STEP_NEXT;
}

/* Scans the options of an IPv4 header of `length` bytes (RFC 791 section 3.1). */
static __always_inline enum content scan_ipv4_options(struct __sk_buff *skb, __u32 at, __u32 length)
{
	struct scan s = {.offset = IPV4_LEN, .length = length};
	int step = STEP_NEXT;

	for (int i = 0; i <= IPV4_OPTIONS_MAX && step == STEP_NEXT; i++) {
		step = ipv4_option_step(skb, at, &s);
		END_OF_LOOP();
	}
	if (step != STEP_END || (s.scents && s.routed))
		return CONTENT_MALFORMED;
	return s.scents ? CONTENT_SCENT : s.routed ? CONTENT_ROUTED : CONTENT_FOREIGN;
}

__noinline int destination_option_step(struct __sk_buff *skb, __u32 at, struct scan *s)
{
	__u8 option[4] = {0, 255};
	__u16 last = 0;

	if (!s || s->offset >= s->length)
		return STEP_END;
	if (bpf_skb_load_bytes(skb, at + s->offset, option, 1) ||
	    (s->offset + 1 < s->length && bpf_skb_load_bytes(skb, at + s->offset, option, 2)))
		return STEP_MALFORMED;
	if (option[0] > 1) {
		s->padding = 0;
		s->options++;
	} else {
		s->padding += option[0] ? 2 + option[1] : 1;
	}
	if (s->padding > SCENT_PADDING_MAX || s->options > SCENT_OPTIONS_MAX ||
	    (option[0] && s->offset + 2 + option[1] > s->length))
		return STEP_MALFORMED;
	if (option[0] == SCENT_IPV6_OPTION_TYPE && option[1] >= 2 &&
	    !bpf_skb_load_bytes(skb, at + s->offset, option, 4) && (option[2] << 8 | option[3]) == SCENT_MAGIC) {
		/* A scent has a header of its own, and that has one form. */
		if (s->offset != 2 || s->length != SCENT_IPV6_HEADER_LEN || option[1] != SCENT_LEN ||
		    bpf_skb_load_bytes(skb, at + SCENT_IPV6_HEADER_LEN - 2, &last, 2) || last != 1)
			return STEP_MALFORMED;
		s->scents = 1;
	}
	s->offset += option[0] ? 2 + option[1] : 1;
	return STEP_NEXT;
}

/* Scans the options of a Destination Options header of `length` bytes (RFC 8200 section 4.2). */
__noinline int scan_destination_options(struct __sk_buff *skb, __u32 at, __u32 length)
{
	struct scan s = {.offset = 2, .length = length};
	int step = STEP_NEXT;

	for (int i = 0; i < STEPS_MAX && step == STEP_NEXT; i++) {
		step = destination_option_step(skb, at, &s);
		END_OF_LOOP();
	}
	if (step != STEP_END)
		return CONTENT_MALFORMED;
	return s.scents ? CONTENT_SCENT : CONTENT_FOREIGN;
}

/* Reads the extension headers of an IPv6 packet. Its fixed header is there. */
__noinline int read_extensions(struct __sk_buff *skb, __u32 at, struct extensions *e)
{
	__u32 offset = IPV6_LEN, headers = 0, routed = 0, atomic = 0, scents = 0;

	if (!e)
		return CONTENT_MALFORMED;
	for (int i = 0; i <= SCENT_HEADERS_MAX && is_extension(e->protocol);) {
		__u32 kind = e->protocol, length = 8, place;
		__u8 head[8];
		int content;

		if (++headers > SCENT_HEADERS_MAX || offset + 8 > e->length ||
		    bpf_skb_load_bytes(skb, at + offset, head, sizeof(head)))
			return CONTENT_MALFORMED;
		if (kind != IPPROTO_FRAGMENT)
			length = (head[1] + 1) * 8;
		if (offset + length > e->length)
			return CONTENT_MALFORMED;
		place = offset;
		offset += length;
		e->protocol = head[0];
		if (kind == IPPROTO_DSTOPTS) {
			content = scan_destination_options(skb, at + place, length);
			if (content == CONTENT_MALFORMED)
				return CONTENT_MALFORMED;
			if (content == CONTENT_SCENT && (place != IPV6_LEN + e->before || scents++))
				return CONTENT_MALFORMED;
		} else if (kind == IPPROTO_HOPOPTS && place == IPV6_LEN) {
			e->before = length;
		} else if (kind == IPPROTO_FRAGMENT) {
			if (head[2] | (head[3] & 0xf9))
				e->fragment = 1;
			else
				atomic = 1;
			if (head[2] | (head[3] & 0xf8))
				break;	/* payload follows */
		} else {
			routed = 1;	/* Routing changes the destination; a late Hop-by-Hop is an error */
		}
		i++;
		END_OF_LOOP();
	}
	e->transport = offset;
	e->room = !routed && !atomic && headers < SCENT_HEADERS_MAX;
	if (scents)
		return routed ? CONTENT_MALFORMED : CONTENT_SCENT;
	return CONTENT_FOREIGN;
}

static __always_inline enum content read_ipv4_options(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	__u32 header = (p->first[0] & 0xf) * 4;
	enum content content;

	/* A large send of over 64 KB says 0, each of its segments its own length (the kernel's include/net/ip.h). */
	if (!p->length && skb->gso_size && skb->len - at > IP_MAX)
		p->length = skb->len - at;
	if ((p->first[0] & 0xf0) != 0x40 || header < IPV4_LEN || p->length < header || p->length > skb->len - at)
		return CONTENT_MALFORMED;
	content = scan_ipv4_options(skb, at, header);
	p->transport = header;
	p->room = header + SCENT_IPV4_OPTION_LEN <= IPV4_LEN + IPV4_OPTIONS_MAX && content != CONTENT_ROUTED;
	return content;
}

static __always_inline enum content read_ipv6_extensions(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	struct extensions e = {.protocol = p->first[1] >> 16 & 0xff, .length = p->length};
	enum content content;

	if ((p->first[0] & 0xf0) != 0x60 || p->length > skb->len - at)
		return CONTENT_MALFORMED;
	content = read_extensions(skb, at, &e);
	p->protocol = e.protocol;
	p->transport = e.transport;
	p->before = e.before;
	p->fragment = e.fragment;
	p->room = e.room;
	return content;
}

/* Fills in the fields of a packet that parse() left out when it declined the packet. */
static __always_inline enum content read_options(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	enum content content = p->family == 4 ? read_ipv4_options(skb, at, p) : read_ipv6_extensions(skb, at, p);

	p->ports = 0;
	p->has_ports = 0;
	if (content == CONTENT_MALFORMED || p->fragment || p->transport + 4 > p->length)
		return content;
	if (may_have_ports(p->protocol))
		p->has_ports = !bpf_skb_load_bytes(skb, at + p->transport, &p->ports, 4);
	else if (p->protocol == IPPROTO_ICMPV6 && bpf_skb_load_bytes(skb, at + p->transport, &p->ports, 4))
		p->ports = 0;
	return content;
}

#endif
