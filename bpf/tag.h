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

/* A key, and what a tag covers, as the words that SipHash takes. */
struct tagged {
	__u64 key[2];
	__u64 words[8];
	__u64 last;
	__u32 count;			/* 4, 5 or 8 */
};

/* All but the key: of this packet, with a scent whose first 26 bytes are three words and the two bytes `tail`. */
static __always_inline void cover(struct tagged *t, const __u64 *scent, __u16 tail, const struct packet *p, __u32 flags)
{
	t->words[0] = scent[0];
	t->words[1] = scent[1];
	t->words[2] = scent[2];
	t->words[3] = tail;
	t->count = 4;
	if (!(flags & SCENT_FLAG_SENDER)) {
		t->words[3] |= (__u64)p->protocol << 16 | (__u64)(flags & SCENT_FLAG_PORTS ? p->ports : 0) << 32;
		t->count = p->family == 4 ? 5 : 8;
	}
	t->words[4] = p->family == 4 ? (__u32)p->source.words[0] | p->destination.words[0] << 32 : p->source.words[0];
	t->words[5] = p->source.words[1];
	t->words[6] = p->destination.words[0];
	t->words[7] = p->destination.words[1];
	t->last = (__u64)t->count << 59;	/* the length in bytes, in the highest byte */
}

/* The tag. A global function: the kernel's verifier looks at it once, and not anew for each way that leads here. */
__noinline __u64 tag_of(const struct tagged *t)
{
	struct siphash s;

	if (!t)
		return 0;		/* no caller does that */
	siphash_begin(&s, t->key);
	siphash_word(&s, t->words[0]);
	siphash_word(&s, t->words[1]);
	siphash_word(&s, t->words[2]);
	siphash_word(&s, t->words[3]);
	if (t->count > 4)
		siphash_word(&s, t->words[4]);
	if (t->count > 5) {
		siphash_word(&s, t->words[5]);
		siphash_word(&s, t->words[6]);
		siphash_word(&s, t->words[7]);
	}
	return siphash_end(&s, t->last);
}

/* The mask of a glance (section 4.3), by bytes 8 to 25 of the scent beside it. */
static __always_inline __u8 glance_mask(const __u64 *key, __u64 first, __u64 second, __u16 tail)
{
	struct siphash s;

	siphash_begin(&s, key);
	siphash_word(&s, first);
	siphash_word(&s, second);
	return siphash_end(&s, tail | 18ULL << 56);
}

#endif
