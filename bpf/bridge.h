/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bridges whose packets iptables does not see, so that no queue serves them. What such a bridge forwards from port to
 * port is served at tc egress of the port by which it leaves: only there it is known not to be for this host. What is
 * this host's own passes the bridge's own device, and the programs there.
 */
#ifndef SCENT_BRIDGE_H
#define SCENT_BRIDGE_H

#include "packet.h"

/* The ports of these bridges, by the interface's index. The value is the number 1. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SCENT_PORTS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

/* At a port: whether the packet came by another port. Otherwise this host sent it, or routed it. */
static __always_inline int is_bridged(struct __sk_buff *skb)
{
	__u32 from = skb->ingress_ifindex;

	return from && bpf_map_lookup_elem(&ports, &from);
}

/* Whether the frame is for a group's Ethernet address, or not whole. */
static __always_inline int is_group_frame(struct __sk_buff *skb)
{
	__u8 *ethernet = (void *)(long)skb->data;

	return (void *)(ethernet + ETH_HLEN) > (void *)(long)skb->data_end || ethernet[0] & 1;
}

#endif
