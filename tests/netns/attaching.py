"""Programs that count echo requests, on real interfaces.

a ---- 10.1.0.0/24 ---- b      those that leave a, those that reach b
"""

from __future__ import annotations

import socket
from struct import pack, unpack

import pytest
from topology import Host, Topology

from scentd.datapath.offload.attach import Attacher
from scentd.datapath.offload.bpfmap import Map
from scentd.datapath.offload.libbpf import Object

COUNTING = """
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");

static __always_inline int count(struct __sk_buff *skb, __u32 slot, int verdict)
{
    __u8 protocol = 0, type = 0;
    bpf_skb_load_bytes(skb, 23, &protocol, 1);
    bpf_skb_load_bytes(skb, 34, &type, 1);
    __u64 *number = bpf_map_lookup_elem(&counts, &slot);
    if (number && protocol == 1 && type == 8)
        __sync_fetch_and_add(number, 1);
    return verdict;
}

SEC("tc") int one(struct __sk_buff *skb) { return count(skb, 0, TC_ACT_UNSPEC); }
SEC("tc") int two(struct __sk_buff *skb) { return count(skb, 1, TC_ACT_UNSPEC); }
SEC("tc") int passing(struct __sk_buff *skb) { return count(skb, 2, TC_ACT_UNSPEC); }
SEC("tc") int ending(struct __sk_buff *skb) { return count(skb, 3, TC_ACT_OK); }
"""

MECHANISMS = ("tcx", "clsact")
BOTH = pytest.mark.parametrize("mechanism", MECHANISMS)


class Lab:
    """Two hosts, the programs, a directory for pins."""

    def __init__(self, net: Topology, directory: str, objects: Object) -> None:
        self.net = net
        self.directory = directory
        self.a, self.b = net.host("a"), net.host("b")
        net.link(self.a, self.b, "10.1.0.0/24")
        self.programs = {name: objects.program_fd(name) for name in objects.programs()}
        self.counts = Map(objects.map_fd("counts"))
        self.index = self.index_of(self.b)

    def index_of(self, host: Host) -> int:
        return host.call(socket.if_nametoindex, host.interfaces[0])

    def counted(self, packets: int = 3) -> list[int]:
        """How many of this many echo requests from a each program has counted."""
        self.reset()
        self.a.run("ping", "-q", "-i", "0.01", "-c", str(packets), self.b.ipv4)
        return self.read()

    def read(self) -> list[int]:
        return [unpack("=Q", value)[0] for _, value in sorted(self.counts.items())]

    def reset(self) -> None:
        self.counts.update_many((pack("=I", slot), bytes(8)) for slot in range(4))

    def attach(self, attacher: Attacher, name: str, host: Host | None = None, direction: str = "ingress") -> str:
        host = host or self.b
        return host.call(attacher.attach, self.index_of(host), direction, self.programs[name])
