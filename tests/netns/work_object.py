"""A BPF object with a map of each kind and a program that uses them: what libbpf is tried with."""

from __future__ import annotations

from struct import pack

SOURCE = """
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 20000);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __u32);
    __type(value, __u64);
} table SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __uint(value_size, 12);
} counts SEC(".maps");

struct locked {
    struct bpf_spin_lock lock;
    __u32 number;
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, struct locked);
} locked SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
    __uint(max_entries, 100);
    __type(key, __u32);
    __type(value, __u32);
} no_batch SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 4096);
} events SEC(".maps");

SEC("tc")
int work(struct __sk_buff *skb)
{
    __u32 zero = 0, key = 7;
    __u32 *count = bpf_map_lookup_elem(&counts, &zero);
    if (count)
        count[0]++;
    struct locked *found = bpf_map_lookup_elem(&locked, &key);
    if (found) {
        bpf_spin_lock(&found->lock);
        found->number++;
        bpf_spin_unlock(&found->lock);
    }
    __u64 *event = bpf_ringbuf_reserve(&events, 8, 0);
    if (event) {
        *event = skb->len;
        bpf_ringbuf_submit(event, 0);
    }
    skb->mark = 0x1234;
    bpf_skb_change_tail(skb, skb->len + 100, 0);
    return 5;
}
"""


PACKET = bytes(12) + b"\x08\x00" + bytes(46)


def u32(*numbers: int) -> bytes:
    return pack(f"={len(numbers)}I", *numbers)
