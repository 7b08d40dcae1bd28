/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program's counters: all its packets by outcome, and the rarer outcomes by peer as well. COUNTERS is how many
 * outcomes it has.
 */
#ifndef SCENT_COUNT_H
#define SCENT_COUNT_H

#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Bounded, and made by the packets of configured peers alone: if it is full, the others count in `counters` only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct scent_tally_key);
	__type(value, struct scent_tally);
} tallies SEC(".maps");

static __always_inline void count(__u32 index, __u32 packets)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &index);

	if (value)
		*value += packets;
}

/* Counts packets of a peer; `at` and `epoch` are of the last one. */
static __always_inline void count_of(__u32 pair, __u32 index, __u32 packets, __u32 at, __u32 epoch)
{
	struct scent_tally_key key = {.pair = pair, .counter = index};
	struct scent_tally first = {.packets = packets, .at = at, .epoch = epoch}, *known;

	if (pair == SCENT_NO_PAIR)
		return;
	known = bpf_map_lookup_elem(&tallies, &key);
	if (!known) {
		bpf_map_update_elem(&tallies, &key, &first, BPF_ANY);
		return;
	}
	known->packets += packets;
	known->at = at;
	known->epoch = epoch;
}

#endif
