/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SipHash-2-4 with 64 bits of output (Aumasson, Bernstein, 2012) over what a tag
 * covers (scentd/wire/README.md, section 4.2). Words are as loaded from memory.
 */
#ifndef SCENT_TAG_H
#define SCENT_TAG_H

#include "packet.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "SipHash reads little-endian words: on other machines the queue does the work"
#endif

struct siphash {
	__u64 a, b, c, d;
};

#define ROTATE(word, bits) ((word) << (bits) | (word) >> (64 - (bits)))

static __always_inline void siphash_round(struct siphash *s)
{
	s->a += s->b;
	s->c += s->d;
	s->b = ROTATE(s->b, 13) ^ s->a;
	s->d = ROTATE(s->d, 16) ^ s->c;
	s->a = ROTATE(s->a, 32) + s->d;
	s->c += s->b;
	s->b = ROTATE(s->b, 17) ^ s->c;
	s->d = ROTATE(s->d, 21) ^ s->a;
	s->c = ROTATE(s->c, 32);
}

static __always_inline void siphash_begin(struct siphash *s, const __u64 *key)
{
	s->a = key[0] ^ 0x736f6d6570736575ULL;
	s->b = key[1] ^ 0x646f72616e646f6dULL;
	s->c = key[0] ^ 0x6c7967656e657261ULL;
	s->d = key[1] ^ 0x7465646279746573ULL;
}

static __always_inline void siphash_word(struct siphash *s, __u64 word)
{
	s->d ^= word;
	siphash_round(s);
	siphash_round(s);
	s->a ^= word;
}

/* `last`: the remaining bytes, and the length of all in the highest. */
static __always_inline __u64 siphash_end(struct siphash *s, __u64 last)
{
	siphash_word(s, last);
	s->c ^= 0xff;
	siphash_round(s);
	siphash_round(s);
	siphash_round(s);
	siphash_round(s);
	return s->a ^ s->b ^ s->c ^ s->d;
}

/* The tag, on this packet, of a scent whose first 26 bytes are three words and the two bytes `tail`. */
static __always_inline __u64 tag_of(const __u64 *key, const __u64 *scent, __u16 tail, const struct packet *p,
				    __u32 flags)
{
	struct siphash s;

	siphash_begin(&s, key);
	siphash_word(&s, scent[0]);
	siphash_word(&s, scent[1]);
	siphash_word(&s, scent[2]);
	if (flags & SCENT_FLAG_SENDER) {
		siphash_word(&s, tail);
		return siphash_end(&s, 32ULL << 56);
	}
	siphash_word(&s, tail | (__u64)p->protocol << 16 | (__u64)(flags & SCENT_FLAG_PORTS ? p->ports : 0) << 32);
	if (p->family == 4) {
		siphash_word(&s, (__u32)p->source.words[0] | p->destination.words[0] << 32);
		return siphash_end(&s, 40ULL << 56);
	}
	siphash_word(&s, p->source.words[0]);
	siphash_word(&s, p->source.words[1]);
	siphash_word(&s, p->destination.words[0]);
	siphash_word(&s, p->destination.words[1]);
	return siphash_end(&s, 64ULL << 56);
}

/* The glance's mask of an epoch (section 4.3); `epoch` as on the wire. */
static __always_inline __u8 glance_mask(const __u64 *key, __u32 epoch)
{
	struct siphash s;

	siphash_begin(&s, key);
	return siphash_end(&s, epoch | 4ULL << 56);
}

#endif
