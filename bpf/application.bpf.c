// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts the bytes that the sockets of a cgroup receive and send. It is attached to the
 * cgroups of v2 that a source names (kind = "application"), for each direction, and runs for
 * their packets and those of the cgroups below them alone. It lets every packet go on.
 *
 * The kernel keeps one counter for each cgroup and direction that the program was attached
 * to, and frees it with the cgroup: so the map is bounded by the configuration.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define LOOPBACK 1	/* the index of lo in every network namespace */
#define GO_ON 1

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);	/* a cgroup, a direction */
	__type(value, __u64);
} bytes SEC(".maps");

/*
 * Lengths are those of IP packets; a large send, or what the receiver has merged, is one packet
 * with one header. What stays on this host does not use the capacity of any link.
 */
SEC("cgroup/skb")
int scent_application(struct __sk_buff *skb)
{
	__u64 *total = bpf_get_local_storage(&bytes, 0);

	/* Atomic: a packet that an interrupt sends may come between reading and writing. */
	if (skb->ifindex != LOOPBACK)
		__sync_fetch_and_add(total, skb->len);
	return GO_ON;
}
