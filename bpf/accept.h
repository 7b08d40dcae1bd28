/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An authentic scent changes the pair's highest epoch, its fragments, and the source addresses of its packets. The
 * events for the daemon and the verifier's counters are here, too.
 */
#ifndef SCENT_ACCEPT_H
#define SCENT_ACCEPT_H

#define COUNTERS SCENT_VERIFY_COUNTERS

#include "count.h"
#include "scent.h"
#include "tag.h"

#define SECOND 1000000000ULL
#define MAX_NODES 65536
#define LAGGING (-4)			/* accept(): accepted, and nothing of the scent is used; see outcome.h for the others */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);			/* pair */
	__type(value, struct scent_receiving);
} receiving SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_NODES);
	__type(key, struct scent_node);
	__type(value, __u32);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/*
 * Packets with a scent that the processor had just accepted. All others are counted in struct scent_receiving, which is
 * at hand where they are looked up.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);			/* pair */
	__type(value, __u64);
} accepted SEC(".maps");

static __always_inline void count_accepted(struct scent_receiving *state, __u32 pair, __u32 packets)
{
	__u64 *value;

	if (state) {
		__sync_fetch_and_add(&state->accepted, packets);
		return;
	}
	value = bpf_map_lookup_elem(&accepted, &pair);
	if (value)
		*value += packets;
}

static __always_inline int within_grace(__u64 now, __u32 since, __u64 grace)
{
	__u64 first = since * SECOND;

	return now >= first && now - first <= grace;
}

static __always_inline void send_event(const struct scent_receiving *state, __u32 kind,
				       const struct scent_incoming *in, __u32 epoch, __u32 glance,
				       const struct packet *p)
{
	struct scent_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count(SCENT_VERIFY_COUNT_EVENTS_LOST, 1);
		return;
	}
	event->kind = kind;
	event->pair = in->pair;
	event->epoch = epoch;
	event->glance = glance;
	*(__u64 *)event->source = p->source.words[0];
	*(__u64 *)(event->source + 8) = p->source.words[1];
	*(__u64 *)event->key_ids = *(__u64 *)in->key_ids;
	/* Another processor may begin the next epoch meanwhile; then the signature fails and the profile is lost. */
	__builtin_memcpy(event->sealed, state->sealed, SCENT_PROFILE_LEN);
	event->family = p->family;
	__builtin_memset(event->padding, 0, sizeof(event->padding));
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void store_fragment(__u8 *to, const struct scent_words *w)
{
	for (int i = 0; i < 3; i++)
		to[i] = w->scent[1] >> 8 * (5 + i);
	for (int i = 0; i < 8; i++)
		to[3 + i] = w->scent[2] >> 8 * i;
	to[11] = w->tail;
	to[12] = w->tail >> 8;
}

/* Notes what the first packet of an epoch says, under the lock. */
static __always_inline void begin(struct scent_receiving *state, const struct scent_incoming *in, __u32 glance,
				  const struct packet *p)
{
	state->glance = glance;
	state->family = p->family;
	*(__u64 *)state->source = p->source.words[0];
	*(__u64 *)(state->source + 8) = p->source.words[1];
	*(__u64 *)state->key_ids = *(__u64 *)in->key_ids;
}

/* Whether fragments under these keys are the epoch's: they are one profile, which was sealed once. */
static __always_inline int is_of_epoch(const struct scent_receiving *state, const struct scent_incoming *in)
{
	return !state->family || *(__u64 *)state->key_ids == *(__u64 *)in->key_ids;
}

static __always_inline void count_duplicate_issuer(__u32 pair, __u32 second)
{
	count(SCENT_VERIFY_COUNT_DUPLICATE_ISSUER, 1);
	count_of(pair, SCENT_VERIFY_COUNT_DUPLICATE_ISSUER, 1, second, 0);
}

/* A sender whose own epochs rise while they are too old here is a second one, or somebody replays a recording. */
static __always_inline void note_replayed(struct scent_receiving *state, __u32 pair, const struct packet *p,
					  __u32 epoch, __u32 second)
{
	__u32 source = p->family == 4 ? p->source.words[0] : p->source.words[1] >> 32;

	if (source == state->replayed_by && epoch > state->replayed)
		count_duplicate_issuer(pair, second);
	if (source != state->replayed_by || epoch > state->replayed) {
		state->replayed_by = source;
		state->replayed = epoch;
	}
}

/*
 * The verdict on an authentic scent, by its freshness (section 7), or LAGGING. Keeps its fragment and its glance if they
 * are new.
 * Most packets of an epoch have nothing new, and take no lock.
 */
static __always_inline int accept(const struct scent_verify_settings *s, struct scent_receiving *state,
				  const struct scent_incoming *in, const __u64 *glance_key, const struct packet *p,
				  const struct scent_words *w, __u64 now)
{
	__u32 epoch = EPOCH(w), index = INDEX(w), began = 0, whole = 0, old = 0, before = 0, since = 0, glance;
	__u32 lagging = 0;

	/* check() has done this, but the kernel's verifier wants the bound on the register that is used. */
	asm volatile("" : "+r"(index));
	if (index >= SCENT_FRAGMENTS)
		return SCENT_VERDICT_MALFORMED;
	if (epoch == *(volatile __u32 *)&state->highest && *(volatile __u32 *)&state->seen >> index & 1) {
		if (state->pieces[index] != (__u32)w->scent[2] && is_of_epoch(state, in))
			count_duplicate_issuer(in->pair, now / SECOND);
		return SCENT_VERDICT_ACCEPTED;
	}
	if (epoch <= state->leapt && epoch * SECOND > now + SCENT_LEAPT_FUTURE * SECOND)
		return SCENT_VERDICT_FUTURE;
	glance = MASKED_GLANCE(w) ^ glance_mask(glance_key, w->scent[1], w->scent[2], w->tail);
	bpf_spin_lock(&state->lock);
	if (epoch > state->highest) {
		/* An alarm's epoch may follow another at once: packets of the one before both are still on their way. */
		if (state->since != now / SECOND || !state->before)
			state->before = state->highest;
		state->highest = epoch;
		state->since = now / SECOND;
		state->seen = 0;
		begin(state, in, glance, p);
		began = 1;
	}
	if (epoch < state->highest) {
		old = 1;
		before = state->before;
		since = state->since;
		lagging = state->highest - epoch <= state->lag;
	} else if (!(state->seen >> index & 1) && is_of_epoch(state, in)) {
		if (!state->family)	/* the queue began this epoch, and the daemon told us only its number */
			begin(state, in, glance, p);
		asm volatile("" : "+r"(index));	/* Linux 6.1 wants to see it once more */
		if (index < SCENT_FRAGMENTS)
			store_fragment(state->sealed + SCENT_FRAGMENT_LEN * index, w);
		if (index < SCENT_FRAGMENTS)
			state->pieces[index] = w->scent[2];
		state->seen |= 1U << index;
		whole = state->seen == (1U << SCENT_FRAGMENTS) - 1;
	}
	bpf_spin_unlock(&state->lock);
	if (old && before && before <= epoch && within_grace(now, since, s->grace))
		return SCENT_VERDICT_ACCEPTED;
	if (old) {
		if (lagging)
			return LAGGING;
		note_replayed(state, in->pair, p, epoch, now / SECOND);
		return SCENT_VERDICT_REPLAYED_EPOCH;
	}
	if (began || whole)
		send_event(state, whole ? SCENT_EVENT_PROFILE : SCENT_EVENT_EPOCH, in, epoch, glance, p);
	return SCENT_VERDICT_ACCEPTED;
}

/*
 * Records the source address of an accepted packet. A pair records at most SCENT_NODES a second, or one more for each
 * processor. The daemon takes the addresses once a second, so recording one once in each is enough.
 */
static __always_inline void record_node(struct scent_receiving *state, __u32 pair, const struct packet *p,
					__u32 second)
{
	struct scent_node key = {.pair = pair, .family = p->family};
	__u32 one = 1;

	*(__u64 *)key.address = p->source.words[0];
	*(__u64 *)(key.address + 8) = p->source.words[1];
	if (bpf_map_lookup_elem(&nodes, &key))
		return;
	if (state->nodes_at != second) {
		state->nodes_at = second;
		state->nodes = 0;
	}
	if (state->nodes >= SCENT_NODES)
		return;
	if (bpf_map_update_elem(&nodes, &key, &one, BPF_NOEXIST))
		count(SCENT_VERIFY_COUNT_NODES_LOST, 1);
	else
		state->nodes++;
}

#endif
