/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interface of the daemon and its BPF programs: keys and values of the maps,
 * events, counters. scripts/gen-layout generates scentd/wire/maps.py from this file.
 *
 * Enums, structs and static assertions alone, as in scent_wire.h. Numbers are in the
 * host's byte order; every member is aligned to its size and padding is written out, so
 * that C and Python agree without asking the compiler. A change of anything here is a
 * change of SCENT_MAPS_VERSION: a daemon takes over only maps of its own version.
 */
#ifndef SCENT_MAPS_H
#define SCENT_MAPS_H

#ifndef SCENT_WIRE_NO_TYPES
#include <linux/types.h>
#include <linux/bpf.h>
#endif

#include "scent_wire.h"

enum scent_maps_constants {
	SCENT_MAPS_VERSION = 8,
	SCENT_MASKS_MAX = 6,		/* different masks of networks' marks, with 0 for their interfaces */
	SCENT_LENGTHS_MAX = 15,		/* different prefix lengths of one scope and family */
	SCENT_CANDIDATES = 4,		/* peers with the same key id that are told apart by address; a power of two */
	SCENT_PERIODS = 3,		/* keys of the period before, this one and the next; all bits below its highest are set */
	SCENT_NODES = 4096,		/* source addresses of a pair that are recorded in a second */
	SCENT_ANSWERS = 4,		/* refused packets that a processor tells of in a tick of the clock */
	SCENT_REFUSED_LEN = 128,	/* bytes of one that it tells */
	SCENT_NO_PAIR = 0xffffffff,	/* a route to a peer whose network signs nothing; a sender who is nobody */
	SCENT_CACHE_BITS = 8,
	SCENT_CACHE_SIZE = 1 << SCENT_CACHE_BITS,	/* address pairs that a processor remembers */
	SCENT_RECENT_BITS = 10,
	SCENT_RECENT_SIZE = 1 << SCENT_RECENT_BITS,	/* flows that a processor remembers for a tick */
	SCENT_PORTS_MAX = 16384,	/* ports of bridges; a bridge has at most 1024 */
};

/* The first member of struct scent_prefix: which table of prefixes. */
enum scent_scope {
	/*
	 * Our networks' addresses -> number: network; verifying: 0 for one that is not verified. detail: stamping: 1 for
	 * one of this host; verifying: 1 if packets from there to peers are stamped.
	 */
	SCENT_SCOPE_LOCAL = 1,
	SCENT_SCOPE_SOURCE = 2,		/* senders -> number: a pair of the peer; detail: scent_treatments */
	SCENT_SCOPE_QUARANTINE = 3,	/* senders -> number: the CLOCK_MONOTONIC second of release */
	/*
	 * Where packets come from, whatever their source -> number: network. The family and the length are 0, and the
	 * address is a mask and the packet's mark under it; mask 0: the interface by which the packet came.
	 */
	SCENT_SCOPE_ORIGIN = 4,
	SCENT_SCOPE_ROUTE = 0x40000000,	/* + network: where its packets go -> number: pair, detail: path MTU */
	SCENT_SCOPE_MEMBER = 0x80000000,	/* + peer: its addresses */
	SCENT_SCOPE_BARRED = 0xc0000000,	/* + pair: senders -> number: as with SCENT_SCOPE_QUARANTINE */
};

/*
 * Longest prefix by hashing: one look-up for each length in use, longest first. A
 * trie would cost a cache miss a bit; providers have millions of prefixes, of few lengths.
 */
struct scent_prefix {
	__u32 scope;
	__u16 family;			/* 4 or 6 */
	__u16 length;			/* bits; the bits behind it are zero */
	__u8 address[16];		/* as on the wire; IPv4: the first four bytes */
};

struct scent_prefix_value {
	__u32 number;
	__u32 detail;
};

struct scent_lengths {
	__u8 count;
	__u8 bits[SCENT_LENGTHS_MAX];	/* longest first */
};

/*
 * A processor's result for a source and a destination, so that the next packet need not look prefixes up. It is valid
 * while the selector has the same value: each change of the tables ends with a turn of the selector.
 */
struct scent_cached {
	__u64 addresses[4];		/* source, destination */
	__u32 selector;
	__u32 number;			/* stamping: pair; verifying: network */
	__u32 detail;			/* stamping: path MTU, 0 if the packet is not stamped; verifying: candidate */
	__u32 key_id;			/* verifying: as in memory */
	__u32 noted;			/* verifying: the Unix second in which the source was recorded as a node */
	__u32 family;
	__u32 own;			/* stamping: the source is an address of this host */
	__u32 origin;			/* stamping: as origin_of() says */
};

/* The fields that packets of a flow have in common and a tag can cover. */
struct scent_flow {
	__u64 addresses[4];		/* source, destination */
	__u32 ports;			/* as on the wire; 0 where the packet has none */
	__u8 protocol;
	__u8 family;
	__u8 has_ports;
	__u8 padding;
};

/*
 * The packets of a peer that were not stamped, or not accepted. Entries are made as they are needed: the peers that the
 * configuration names times a few outcomes. Accepted packets have an array of their own, by pair.
 */
struct scent_tally_key {
	__u32 pair;			/* any of the peer's */
	__u32 counter;			/* an index into the program's counters */
};

/* A processor's part. */
struct scent_tally {
	__u64 packets;
	__u32 at;			/* verifying: the Unix second of the last one */
	__u32 epoch;			/* verifying: the epoch that the last one named, which nobody has verified; or 0 */
};

/* -- stamping ---------------------------------------------------------- */

/* Flags of a pair, and for the stamper two fields of eight bits each. */
enum scent_pair_flags {
	SCENT_PAIR_SENDER = 1,		/* bind = sender */
	SCENT_PAIR_IPV6_FRAGMENTS = 2,
	SCENT_PAIR_TWO_KEYS = 4,	/* verifying: our network has another key beside this one */
	SCENT_PAIR_OVERHEAD4 = 8,	/* bits to shift by: bytes that a scent adds to the pair's IPv4 packets */
	SCENT_PAIR_OVERHEAD6 = 16,	/* likewise, to its IPv6 packets */
};

/*
 * There are two settings. The daemon writes the one that is not in use, then turns the selector (it goes up by one, and
 * its lowest bit is the index of the settings in use), so no packet sees half-written settings.
 */
struct scent_stamp_settings {
	__u64 run;			/* ns for which packets of a pair share a fragment */
	__u32 forwarded;		/* the mark of forwarded packets that a rule knows as ours; 0: none is stamped */
	__u32 masks;			/* how many of those below; 0: no packet is known by where it comes from */
	__u32 mask[SCENT_MASKS_MAX];
	struct scent_lengths local4;
	struct scent_lengths local6;
	struct scent_lengths route4;
	struct scent_lengths route6;
};

/* Bytes 8 to 25 of a scent, as the words that the tag's hash and the packet take, and byte 3. */
struct scent_piece {
	__u64 words[2];			/* epoch, fragment index and count, fragment[0..10] */
	__u16 tail;			/* fragment[11..12] */
	__u8 glance;			/* masked */
	__u8 padding[5];
};

/* By pair. Replaced as a whole with each epoch; the four mutable members begin anew. */
struct scent_outgoing {
	__u64 tag_key[2];		/* little-endian, as SipHash reads a key */
	__u64 expires;			/* CLOCK_MONOTONIC, ns */
	__u64 run_until;		/* mutable: when the run of this fragment ends */
	__u64 head;			/* bytes 0 to 7 of the scent, its flags and its glance zero */
	__u32 sent;			/* mutable: packets stamped, counted up to ten */
	__u16 index;			/* mutable: the fragment of this run */
	__u16 first;			/* mutable: the fragment with which this round of ten runs began */
	__u32 epoch;
	__u32 flags;			/* scent_pair_flags */
	struct scent_piece pieces[SCENT_FRAGMENTS];
};

/*
 * The scent of a flow's last packet. It is valid while the clock (bpf_ktime_get_coarse_ns) stands still, a few
 * milliseconds, and the selector does. Any other change since could as well have come just after the packet.
 */
struct scent_stamped {
	struct scent_flow flow;
	__u64 now;			/* the clock then; 0: the entry may not serve another packet */
	__u64 scent[SCENT_TAGGED_LEN / 8];	/* 24 bytes as in memory */
	__u64 tag;
	__u32 tail;			/* bytes 24 and 25 */
	__u32 selector;
	__u32 flags;			/* scent_pair_flags */
	__u32 limit;			/* path MTU */
	__u32 pair;
	__u32 own;			/* the source is an address of this host */
	__u32 origin;			/* as origin_of() says */
	__u32 padding;
};

/* Indices into the stamper's counters. */
enum scent_stamp_count {
	SCENT_STAMP_COUNT_STAMPED = 0,
	SCENT_STAMP_COUNT_UNSTAMPED = 1,	/* + scent_unstamped */
	/* The kernel made no room. */
	SCENT_STAMP_COUNT_FAILED = SCENT_STAMP_COUNT_UNSTAMPED + SCENT_UNSTAMPED_REASONS,
	SCENT_STAMP_COUNTERS,
};

/* -- verifying --------------------------------------------------------- */

/* scent_prefix_value.detail of a sender, and the default: three treatments, a flag, a length. */
enum scent_treatments {
	SCENT_TREATMENTS_REJECTED = 0,		/* bits to shift by */
	SCENT_TREATMENTS_ABSENT = 2,
	SCENT_TREATMENTS_ABSENT_IPV6_FRAGMENT = 4,
	SCENT_TREATMENTS_EXPECTED = 6,		/* unscented packets are judged; else only scented ones */
	SCENT_TREATMENTS_SEGMENT = 16,		/* 16 bits: the longest that its SYNs may announce; 0: we stamp none to it */
};

struct scent_verify_settings {
	__u64 max_age;			/* ns */
	__u64 max_future;
	__u64 grace;
	__u32 mark_verified;		/* mark of packets that are judged: the queue's rules let them by */
	__u32 mark_glance;		/* eight neighbouring bits of the mark for load and threat, or 0 */
	__u32 fallback;			/* scent_treatments of strangers */
	__u32 padding;
	struct scent_lengths local4;
	struct scent_lengths local6;
	struct scent_lengths source4;
	struct scent_lengths source6;
	struct scent_lengths member4;
	struct scent_lengths member6;
	struct scent_lengths quarantine4;
	struct scent_lengths quarantine6;
	struct scent_lengths barred4;
	struct scent_lengths barred6;
};

/* Written each second. */
struct scent_clock {
	__u64 offset;			/* Unix time less CLOCK_MONOTONIC, ns */
	__u64 until;			/* CLOCK_MONOTONIC, ns: from then on the queue, or its `fail`, decides */
	__u64 until_bridged;		/* likewise, of what a bridge forwards, which no queue sees: then it is let by */
};

/* A pair of which a scent may be. */
struct scent_identity {
	__u8 key_id[4];
	__u32 network;			/* ours, by the destination */
	__u32 candidate;		/* 0 .. SCENT_CANDIDATES - 1; + SCENT_CANDIDATES: with our network's other key */
};

/* A key of the peer and a key of ours. */
struct scent_incoming {
	__u32 pair;
	__u32 peer;
	__u32 flags;			/* scent_pair_flags */
	__u32 period;			/* of the second of the three keys */
	__u64 tag_keys[2 * SCENT_PERIODS];	/* two words each */
	__u64 glance_keys[2 * SCENT_PERIODS];
	__u8 key_ids[8];		/* of the peer's key and of ours */
	__u64 padding;
};

/* By pair; made by the daemon, changed by the program under its lock. */
struct scent_receiving {
	struct bpf_spin_lock lock;
	__u32 highest;			/* epoch */
	__u32 before;			/* the highest of an earlier second, the oldest that grace is for */
	__u32 since;			/* the Unix second at which the highest was first seen */
	__u32 seen;			/* bit i: fragment i of the highest epoch has come */
	__u32 glance;			/* of the highest epoch, unmasked */
	__u32 nodes;			/* recorded in the second below */
	__u32 nodes_at;			/* Unix */
	__u32 leapt;			/* epochs up to here were accepted while both ends' clocks were wrong */
	__u32 replayed;			/* the last epoch that was refused as replayed; not under the lock */
	__u32 replayed_by;		/* the last four bytes of the source address that it came from */
	__u32 lag;			/* seconds below the highest epoch that are accepted: its network has several stampers */
	__u64 accepted;			/* packets; not under the lock, and without those in the map of that name */
	__u8 key_ids[8];		/* of the keys of the highest epoch: fragments under other keys are not its own */
	__u32 pieces[SCENT_FRAGMENTS];	/* four bytes of each fragment that is in `seen` */
	__u8 sealed[SCENT_PROFILE_LEN];
	__u8 family;			/* 4 or 6, of `source` */
	__u8 padding2[5];
	__u8 source[16];		/* of the packet that began the epoch */
};

/*
 * The last accepted scent of a flow. The same bytes are accepted again while the clock stands still, as with struct
 * scent_stamped (scentd/wire/README.md, section 7, allows a second).
 */
struct scent_verified {
	struct scent_flow flow;
	__u64 now;			/* the clock then */
	__u64 offset;			/* of struct scent_clock, then */
	__u64 scent[SCENT_TAGGED_LEN / 8];
	__u64 tag;
	__u32 tail;
	__u32 selector;
	__u32 glance;			/* unmasked */
	__u32 pair;
};

/* A source address that an accepted packet had. The value is the number 1. */
struct scent_node {
	__u32 pair;
	__u32 family;
	__u8 address[16];
};

enum scent_event_kind {
	SCENT_EVENT_EPOCH = 1,		/* the first packet of a new epoch: its glance */
	SCENT_EVENT_PROFILE = 2,	/* all ten fragments: `sealed` */
	SCENT_EVENT_REFUSED = 3,	/* a packet that the daemon answers: struct scent_refused */
};

struct scent_event {
	__u32 kind;
	__u32 pair;
	__u32 epoch;
	__u32 glance;			/* unmasked */
	__u8 source[16];
	__u8 key_ids[8];		/* as in struct scent_incoming */
	__u8 sealed[SCENT_PROFILE_LEN];
	__u8 family;
	__u8 padding[5];
};

/* A packet that was dropped and whose sender is to be told. Nothing in it is believed. */
struct scent_refused {
	__u32 kind;			/* SCENT_EVENT_REFUSED */
	__u32 interface;
	__u32 length;			/* of the IP packet */
	__u32 held;			/* bytes of it below */
	__u8 packet[SCENT_REFUSED_LEN];
};

/* A processor's part in keeping these few. */
struct scent_answered {
	__u64 now;			/* the clock's tick */
	__u32 told;			/* in it */
	__u32 padding;
};

/* Indices into the verifier's counters; before these stand SCENT_TREATMENTS * scent_verdict + scent_treatment. */
enum scent_verify_count {
	SCENT_VERIFY_COUNT_DECLINED = SCENT_TREATMENTS * SCENT_VERDICTS,	/* left to the queue */
	SCENT_VERIFY_COUNT_FAILED,		/* the kernel did not take the scent off: left to the queue */
	SCENT_VERIFY_COUNT_EVENTS_LOST,
	SCENT_VERIFY_COUNT_NODES_LOST,
	SCENT_VERIFY_COUNT_QUARANTINED,
	SCENT_VERIFY_COUNT_DUPLICATE_ISSUER,	/* packets that tell of a second machine with the peer's key */
	SCENT_VERIFY_COUNTERS,
};

_Static_assert(SCENT_IPV4_OPTION_LEN <= 0xff && SCENT_IPV6_HEADER_LEN <= 0xff, "bits of an overhead");
_Static_assert(SCENT_TREATMENTS <= 1 << (SCENT_TREATMENTS_ABSENT - SCENT_TREATMENTS_REJECTED), "bits of a treatment");
_Static_assert(SCENT_TAGGED_LEN == sizeof(((struct scent_stamped *)0)->scent) + 2, "words and the tail");

#endif
