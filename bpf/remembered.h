/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a processor remembers: of two addresses for as long as the tables stay, of a flow for as long as the clock
 * stands still. The map of flows is each program's own.
 */
#ifndef SCENT_REMEMBERED_H
#define SCENT_REMEMBERED_H

#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCENT_CACHE_SIZE);
	__type(key, __u32);
	__type(value, struct scent_cached);
} cache SEC(".maps");

static __always_inline __u64 mixed(const struct packet *p)
{
	return (p->source.words[0] ^ p->source.words[1] * 3) + (p->destination.words[0] ^ p->destination.words[1] * 5);
}

/* A place of 2^bits. */
static __always_inline __u32 place(__u64 mixed, __u32 bits)
{
	return mixed * 0x9e3779b97f4a7c15ULL >> (64 - bits);
}

static __always_inline int same_addresses(const __u64 *addresses, const struct packet *p)
{
	return addresses[0] == p->source.words[0] && addresses[1] == p->source.words[1] &&
	       addresses[2] == p->destination.words[0] && addresses[3] == p->destination.words[1];
}

static __always_inline void set_addresses(__u64 *addresses, const struct packet *p)
{
	addresses[0] = p->source.words[0];
	addresses[1] = p->source.words[1];
	addresses[2] = p->destination.words[0];
	addresses[3] = p->destination.words[1];
}

/* Where this processor remembers these addresses, or others that share the place. */
static __always_inline struct scent_cached *cached(const struct packet *p)
{
	__u32 index = place(mixed(p), SCENT_CACHE_BITS);

	return bpf_map_lookup_elem(&cache, &index);
}

static __always_inline int remembers(const struct scent_cached *c, const struct packet *p, __u32 selector)
{
	return c->selector == selector && c->family == p->family && same_addresses(c->addresses, p);
}

static __always_inline void remember(struct scent_cached *c, const struct packet *p, __u32 selector, __u32 number,
				     __u32 detail)
{
	set_addresses(c->addresses, p);
	c->selector = selector;
	c->family = p->family;
	c->number = number;
	c->detail = detail;
}

/* The place of a flow, or of others that share it, in the map `recent`. */
static __always_inline __u32 recent_index(const struct packet *p)
{
	return place(mixed(p) ^ ((__u64)p->ports << 32 | p->ports), SCENT_RECENT_BITS);
}

static __always_inline int same_flow(const struct scent_flow *f, const struct packet *p)
{
	return same_addresses(f->addresses, p) && f->ports == (p->has_ports ? p->ports : 0) &&
	       f->protocol == (__u8)p->protocol && f->family == (__u8)p->family && f->has_ports == (__u8)p->has_ports;
}

static __always_inline void set_flow(struct scent_flow *f, const struct packet *p)
{
	set_addresses(f->addresses, p);
	f->ports = p->has_ports ? p->ports : 0;
	f->protocol = p->protocol;
	f->family = p->family;
	f->has_ports = p->has_ports;
}

#endif
