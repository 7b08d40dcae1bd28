/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The 34 bytes of a scent, the same in every carrier: the verifier reads them as words, the stamper writes words.
 */
#ifndef SCENT_SCENT_H
#define SCENT_SCENT_H

#include "packet.h"

struct scent_words {
	__u64 scent[3];
	__u64 tag;
	__u16 tail;			/* bytes 24 and 25 */
	__u16 padding[3];
};

#define FLAGS(w) ((__u32)((w)->scent[0] >> 16 & 0xf))
#define VERSION(w) ((__u32)((w)->scent[0] >> 20 & 0xf))
#define MASKED_GLANCE(w) ((__u32)((w)->scent[0] >> 24 & 0xff))
#define KEY_ID(w) ((__u32)((w)->scent[0] >> 32))
#define EPOCH(w) (bpf_ntohl((__u32)(w)->scent[1]))
#define INDEX(w) ((__u32)((w)->scent[1] >> 36 & 0xf))
#define COUNT(w) ((__u32)((w)->scent[1] >> 32 & 0xf))

/* Whether all bytes of the carrier are there, and its padding is right. */
static __always_inline int read_scent(struct __sk_buff *skb, __u32 at, const struct packet *p, struct scent_words *w)
{
	__u32 scent = at + (p->family == 4 ? IPV4_LEN + 2 : IPV6_LEN + 4);
	__u16 padding = 1;

	return LOAD(skb, scent, w->scent[0]) && LOAD(skb, scent + 8, w->scent[1]) &&
	       LOAD(skb, scent + 16, w->scent[2]) && LOAD(skb, scent + 24, w->tail) &&
	       LOAD(skb, scent + 26, w->tag) && (p->family == 4 || LOAD(skb, scent + SCENT_LEN, padding)) &&
	       padding == 1;
}

static __always_inline void put_scent(__u32 *scent, __u16 *tail, const struct scent_stamped *c)
{
	for (int i = 0; i < 3; i++) {
		scent[2 * i] = c->scent[i];
		scent[2 * i + 1] = c->scent[i] >> 32;
	}
	tail[0] = c->tail;
	for (int i = 0; i < 4; i++)
		tail[1 + i] = c->tag >> 16 * i;
}

#endif
