/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Longest prefix match by hashing (scent_maps.h, struct scent_prefix); and the selector, which says which of the two
 * settings is in use.
 */
#ifndef SCENT_LPM_H
#define SCENT_LPM_H

#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);	/* the daemon makes it as large as the configuration asks */
	__type(key, struct scent_prefix);
	__type(value, struct scent_prefix_value);
} prefixes SEC(".maps");

/* The lowest bit is the index of the settings that are in use. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} selector SEC(".maps");

static __always_inline __u64 high_bits(__u32 count)
{
	return count ? bpf_cpu_to_be64(~0ULL << ((64 - count) & 63)) : 0;
}

struct query {
	struct scent_prefix key;	/* scope and family */
	struct scent_prefix_value value;	/* of the longest prefix, if there is one */
};

/*
 * Whether a prefix covers the address; the value of the longest goes into the query. The function is global: so the
 * kernel's verifier looks at its loop once, and not with each caller's state.
 */
__noinline int find_prefix(const struct scent_lengths *lengths, const struct address *address, struct query *q)
{
	struct scent_prefix_value *value;
	struct scent_prefix key;	/* on this function's stack: an argument is no key to Linux 6.1 */
	__u64 *words;

	if (!lengths || !address || !q)
		return 0;
	key = q->key;
	words = (__u64 *)key.address;
	for (__u32 i = 0; i < SCENT_LENGTHS_MAX && i < lengths->count; i++) {
		__u32 bits = lengths->bits[i];

		key.length = bits;
		words[0] = address->words[0] & high_bits(bits > 64 ? 64 : bits);
		words[1] = address->words[1] & high_bits(bits > 64 ? bits - 64 : 0);
		value = bpf_map_lookup_elem(&prefixes, &key);
		if (value) {
			q->value = *value;
			return 1;
		}
	}
	return 0;
}

#endif
