/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A processor's two caches. `cache` keeps the results of the tables for two addresses, until the selector turns.
 * `recent` keeps a flow's last scent, until the clock moves. Each program has a map `recent` of its own, because their
 * entries differ.
 */
#ifndef SCENT_CACHE_H
#define SCENT_CACHE_H

#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCENT_CACHE_SIZE);
	__type(key, __u32);
	__type(value, struct scent_cached);
} cache SEC(".maps");

static __always_inline __u64 hash_addresses(const struct packet *p)
{
	return (p->source.words[0] ^ p->source.words[1] * 3) + (p->destination.words[0] ^ p->destination.words[1] * 5);
}

/* One of 2^bits slots. */
static __always_inline __u32 slot(__u64 hash, __u32 bits)
{
	return hash * 0x9e3779b97f4a7c15ULL >> (64 - bits);
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

/*
 * The slot of these addresses; `more` tells apart who shares them. Other addresses may share the slot, and the entry in
 * it may be of others.
 */
static __always_inline struct scent_cached *cache_entry(const struct packet *p, __u32 more)
{
	__u32 index = slot(hash_addresses(p) + more, SCENT_CACHE_BITS);

	return bpf_map_lookup_elem(&cache, &index);
}

/* Whether the entry is of these addresses, and the tables have not changed since. */
static __always_inline int cache_hit(const struct scent_cached *c, const struct packet *p, __u32 selector)
{
	return c->selector == selector && c->family == p->family && same_addresses(c->addresses, p);
}

static __always_inline void fill_cache(struct scent_cached *c, const struct packet *p, __u32 selector, __u32 number,
				       __u32 detail)
{
	set_addresses(c->addresses, p);
	c->selector = selector;
	c->family = p->family;
	c->number = number;
	c->detail = detail;
}

/* The slot of a flow in `recent`. Other flows may share it. */
static __always_inline __u32 recent_index(const struct packet *p)
{
	return slot(hash_addresses(p) ^ ((__u64)p->ports << 32 | p->ports), SCENT_RECENT_BITS);
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
