/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The scent wire format, version 1: the one definition of every byte, length,
 * limit and reason. scentd/wire/layout.py is generated from this file by
 * scripts/gen-layout; scentd/wire/README.md explains it.
 *
 * Only enums, packed structs of fixed-width members and static assertions stand
 * here, so that a C parser can read the file without a preprocessor. Multi-byte
 * integers are big-endian on the wire.
 */
#ifndef SCENT_WIRE_H
#define SCENT_WIRE_H

#ifndef SCENT_WIRE_NO_TYPES
#include <linux/types.h>
#endif

enum scent_constants {
	SCENT_MAGIC = 0x5ce7,
	SCENT_VERSION = 1,

	/* carriers */
	SCENT_LEN = 34,			/* the scent itself, the same in every carrier */
	SCENT_TAG_LEN = 8,
	SCENT_TAGGED_LEN = SCENT_LEN - SCENT_TAG_LEN,	/* the scent without its tag */
	SCENT_IPV4_OPTION_TYPE = 158,	/* RFC 4727: experiment 30, class 0, copied to fragments */
	SCENT_IPV4_OPTION_LEN = 2 + SCENT_LEN,	/* type, length, scent */
	SCENT_IPV6_OPTION_TYPE = 0x1e,	/* RFC 4727: experiment, skipped if unknown, not mutable */
	SCENT_IPV6_HEADER_LEN = 2 + 2 + SCENT_LEN + 2,	/* Destination Options header, option, scent, padding */
	SCENT_BEACON_PORT = 1021,	/* RFC 4727: UDP port exp1 */

	/* packets: README.md, sections 4.2 and 8 */
	SCENT_PORTLESS_MIN = 1280,	/* bytes with the scent; only the tag of a longer packet may leave ports out */
	SCENT_HEADERS_MAX = 8,		/* IPv6 extension headers, ours included; a packet with more is malformed */
	SCENT_PADDING_MAX = 7,		/* bytes in a row, in a Destination Options header; with more it is malformed */
	SCENT_OPTIONS_MAX = 8,		/* options that are no padding, likewise */

	/* profile */
	SCENT_FRAGMENT_LEN = 13,
	SCENT_FRAGMENTS = 10,
	SCENT_BODY_LEN = 66,
	SCENT_SIGNATURE_LEN = 64,
	SCENT_PROFILE_LEN = SCENT_BODY_LEN + SCENT_SIGNATURE_LEN,
	SCENT_LEVELS = 22,
	SCENT_LEVEL_MAX = 250,		/* 1.0; one step is 0.004 */
	SCENT_LEVEL_UNKNOWN = 255,
	SCENT_GLANCE_MAX = 15,
	SCENT_BLOOM_LEN = 32,		/* 256 bits */
	SCENT_BLOOM_HASHES = 5,

	/* time, seconds */
	SCENT_PERIOD = 3600,		/* a pair's keys are new in each */
	SCENT_LEAPT_FUTURE = 2,		/* how far an epoch may be ahead that was accepted once while clocks were wrong */
	SCENT_INTERVAL_MIN = 1,
	SCENT_INTERVAL_MAX = 60,
	SCENT_LIFETIME_INTERVALS = 3,	/* a profile is stamped for so many intervals */
	SCENT_LIFETIME_MORE = 15,	/* and so many seconds, */
	SCENT_LIFETIME_MAX = 55,	/* but for no longer than this, or than its interval */
	SCENT_LAG_MAX = 55,		/* how far a network's stampers may lag behind one another */
};

/* The low four bits of scent.version_flags. */
enum scent_flags {
	SCENT_FLAG_PORTS = 1,		/* the tag covers the ports */
	SCENT_FLAG_SENDER = 2,		/* bind = sender: the tag covers the scent alone */
	SCENT_FLAG_BEACON = 4,		/* the packet is ours: take it after verifying */
};

struct scent {
	__u16 magic;
	__u8 version_flags;		/* version << 4 | flags */
	__u8 glance;			/* (load << 4 | threat) ^ mask of epoch and fragment */
	__u8 key_id[4];
	__u32 epoch;
	__u8 fragment_index_count;	/* index << 4 | count */
	__u8 fragment[SCENT_FRAGMENT_LEN];
	__u8 tag[SCENT_TAG_LEN];
} __attribute__((packed));

struct scent_ipv4_option {
	__u8 type;
	__u8 length;
	__u8 scent[SCENT_LEN];
} __attribute__((packed));

/* RFC 8200, section 4.6; the PadN (type 1) brings it to a multiple of eight. */
struct scent_ipv6_header {
	__u8 next_header;
	__u8 length;			/* in units of 8 bytes, the first not counted: 4 */
	__u8 type;
	__u8 option_length;
	__u8 scent[SCENT_LEN];
	__u8 pad_type;
	__u8 pad_length;
} __attribute__((packed));

/* What the tag covers; ports and addresses as on the wire, zero where not bound. */
struct scent_tag_input_ipv4 {
	__u8 scent[SCENT_TAGGED_LEN];
	__u8 protocol;
	__u8 zero;
	__u8 ports[4];
	__u8 source[4];
	__u8 destination[4];
} __attribute__((packed));

struct scent_tag_input_ipv6 {
	__u8 scent[SCENT_TAGGED_LEN];
	__u8 protocol;
	__u8 zero;
	__u8 ports[4];
	__u8 source[16];
	__u8 destination[16];
} __attribute__((packed));

struct scent_tag_input_sender {
	__u8 scent[SCENT_TAGGED_LEN];
	__u8 zero[6];
} __attribute__((packed));

/* The signed statement; 64 bytes of Ed25519 signature follow it. */
struct scent_body {
	__u8 version;
	__u8 key_id[4];
	__u32 epoch;
	__u8 interval;			/* seconds until the next profile is due */
	__u8 overall;			/* weighted score, a level */
	__u8 levels[SCENT_LEVELS];	/* by scent_metric */
	__u8 lag;			/* seconds by which the network's stampers may lag behind one another */
	__u8 bloom[SCENT_BLOOM_LEN];
} __attribute__((packed));

/* Index into scent_body.levels. 10..15 are reserved, 16..21 are named by configuration. */
enum scent_metric {
	SCENT_METRIC_CPU = 0,
	SCENT_METRIC_MEMORY = 1,
	SCENT_METRIC_BANDWIDTH_IN = 2,
	SCENT_METRIC_BANDWIDTH_OUT = 3,
	SCENT_METRIC_LATENCY = 4,
	SCENT_METRIC_JITTER = 5,
	SCENT_METRIC_THREAT = 6,
	SCENT_METRIC_DATABASE_LOAD = 7,
	SCENT_METRIC_REQUEST_LOAD = 8,
	SCENT_METRIC_RETRANSMITS = 9,
	SCENT_METRIC_FIRST_PRIVATE = 16,
};

/* What a verifier finds. Zero and one are not refusals. */
enum scent_verdict {
	SCENT_VERDICT_ACCEPTED = 0,
	SCENT_VERDICT_ABSENT = 1,
	SCENT_VERDICT_MALFORMED = 2,		/* lengths, duplicates, padding, counts */
	SCENT_VERDICT_UNSUPPORTED_VERSION = 3,
	SCENT_VERDICT_UNKNOWN_KEY = 4,
	SCENT_VERDICT_WRONG_ADDRESS = 5,	/* a known key from an address that is not its peer's */
	SCENT_VERDICT_WRONG_BINDING = 6,	/* ports or addresses left out where they must be covered */
	SCENT_VERDICT_FUTURE = 7,
	SCENT_VERDICT_STALE = 8,
	SCENT_VERDICT_BAD_TAG = 9,
	SCENT_VERDICT_REPLAYED_EPOCH = 10,	/* below an epoch that was accepted before */
	SCENT_VERDICTS,				/* how many there are */
};

/* What becomes of a packet at the verifier, by its verdict. An accepted packet passes. */
enum scent_treatment {
	SCENT_TREATMENT_DROP = 0,
	SCENT_TREATMENT_REJECT = 1,	/* as dropped, and its sender is told */
	SCENT_TREATMENT_PASS = 2,
	SCENT_TREATMENTS,		/* how many there are */
};

/* Why a packet left without a scent. */
enum scent_unstamped {
	SCENT_UNSTAMPED_NO_PROFILE = 0,		/* nothing signed yet, or too old to send */
	SCENT_UNSTAMPED_NOT_A_PEER = 1,
	SCENT_UNSTAMPED_NO_ROOM = 2,		/* IPv4 options leave less than 36 bytes */
	SCENT_UNSTAMPED_TOO_BIG = 3,		/* it would not fit the path and may not be fragmented */
	SCENT_UNSTAMPED_IPV6_FRAGMENT = 4,
	SCENT_UNSTAMPED_HEADERS = 5,		/* IPv6 headers among which ours has no place */
	SCENT_UNSTAMPED_ALREADY = 6,		/* it has a scent */
	SCENT_UNSTAMPED_MALFORMED = 7,
	SCENT_UNSTAMPED_MASQUERADED = 8,	/* forwarded under an address of this host, and no rule says whose it is */
	SCENT_UNSTAMPED_TRANSLATED = 9,		/* this host's source NAT makes it another packet behind the queue */
	SCENT_UNSTAMPED_TUNNELLED = 10,		/* IPv6 that goes into an IPsec tunnel: no queue may have it, no program sees it */
	SCENT_UNSTAMPED_REASONS,		/* how many there are */
};

/* Why a completed set of fragments gave no profile. */
enum scent_profile_error {
	SCENT_PROFILE_ERROR_LENGTH = 0,
	SCENT_PROFILE_ERROR_VERSION = 1,
	SCENT_PROFILE_ERROR_IDENTITY = 2,	/* key id or epoch differ from the scent's */
	SCENT_PROFILE_ERROR_SIGNATURE = 3,
	SCENT_PROFILE_ERROR_LEVEL = 4,		/* 251..254; interval or lag out of range */
};

_Static_assert(sizeof(struct scent) == SCENT_LEN, "struct scent");
_Static_assert(sizeof(struct scent_ipv4_option) == SCENT_IPV4_OPTION_LEN, "struct scent_ipv4_option");
_Static_assert(SCENT_IPV4_OPTION_LEN % 4 == 0, "an IPv4 header is a number of 4-byte words");
_Static_assert(sizeof(struct scent_ipv6_header) == SCENT_IPV6_HEADER_LEN, "struct scent_ipv6_header");
_Static_assert(SCENT_IPV6_HEADER_LEN % 8 == 0, "an IPv6 extension header is a number of 8-byte words");
_Static_assert(sizeof(struct scent_body) == SCENT_BODY_LEN, "struct scent_body");
_Static_assert(SCENT_PROFILE_LEN == SCENT_FRAGMENTS * SCENT_FRAGMENT_LEN, "fragments make up the profile");
_Static_assert(SCENT_FRAGMENTS <= 15, "a fragment's index and their count have four bits each");

#endif
