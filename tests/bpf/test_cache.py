"""What a processor remembers of two addresses never stands for two others, nor for tables that were."""

from __future__ import annotations

from ipaddress import IPv6Address
from random import Random

import pytest
import wire_setup
from bpf_programs import Kernel
from msgspec.structs import replace
from packet_vectors import ip4, ip6, raw, tcp, udp

from scentd.core.tables import StampTable, VerifyTable
from scentd.prefix import PrefixMap
from scentd.wire import layout

pytestmark = pytest.mark.netns

NOW = wire_setup.NOW + 0.5
DRAWS = 4000  # of 400 pairs of addresses, which share 256 places
PLAIN = bytes(ip4() / tcp())
SCENTED = wire_setup.stamper().stamp(PLAIN)


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


Shape = tuple[int, int]  # networks of 64 bits, hosts in each


class Ends:
    """Sources and destinations that share either half with many others.

    In every network one half, of 65 bits, is ours; which one differs from network to network.
    """

    def __init__(self, sources: Shape, destinations: Shape) -> None:
        self._rng = Random(5)  # noqa: S311 - the same packets each time
        self.sources, self.own_sources = self._side(*sources)
        self.destinations, self.own_destinations = self._side(*destinations)

    def _side(self, networks: int, hosts: int) -> tuple[list[bytes], tuple[str, ...]]:
        found = [b"\x20\x01\x0d\xb8" + self._rng.randbytes(3) + bytes((number,)) for number in range(networks)]
        last = [bytes((i % 2 << 7 | self._rng.getrandbits(7),)) + self._rng.randbytes(7) for i in range(hosts)]
        own = tuple(f"{IPv6Address(n + bytes((n[7] % 2 << 7,)) + bytes(7))}/65" for n in found)
        return [network + host for network in found for host in last], own

    def draw(self) -> list[tuple[bytes, bytes]]:
        return [(self._rng.choice(self.sources), self._rng.choice(self.destinations)) for _ in range(DRAWS)]


@pytest.fixture(params=[((2, 100), (2, 1)), ((100, 2), (2, 1)), ((2, 1), (2, 100)), ((2, 1), (100, 2))], ids=str)
def ends(request):
    return Ends(*request.param)


def test_routes_are_of_these_two_addresses(kernel, ends):
    table = StampTable(
        networks=tuple((prefix, 0) for prefix in ends.own_sources),
        peers=(("2001:db8::/32", 0),),
        pairs=wire_setup.STAMP_TABLE.pairs[:1],
        limits=(("2001:db8::/32", 1500), *((prefix, 1280) for prefix in ends.own_destinations)),
    )
    kernel.stamp_by(table)
    one, sent = wire_setup.stamper(now=NOW, table=table), wire_setup.outgoing()
    packet = bytes(ip6() / udp() / raw(1300))
    seen = set()
    for source, destination in ends.draw():
        given = packet[:8] + source + destination + packet[40:]
        kernel.fresh_stamper()
        one.update(sent)
        made = one.stamp(given)
        ran = kernel.stamp(given)
        assert ran.packet == (made if isinstance(made, bytes) else given)
        wanted = "stamped" if isinstance(made, bytes) else f"unstamped:{layout.UNSTAMPED[made]}"
        assert ran.counts == ({} if made == layout.UNSTAMPED_NOT_A_PEER else {wanted: 1})
        seen.add(wanted)
    assert seen == {"stamped", "unstamped:ipv6-fragment", "unstamped:not-a-peer"}


def test_senders_are_of_these_two_addresses(kernel, ends):
    """Right tags for all of them, and only some of the addresses are the peer's, or ours."""
    incoming = replace(wire_setup.incoming("alice", "bob"), network=ends.own_destinations, peer=ends.own_sources)
    table = VerifyTable(incoming=(incoming,))
    kernel.verify_by(table)
    kernel.fresh_verifier()
    everybody = StampTable(networks=(("::/0", 0),), peers=(("::/0", 0),), pairs=wire_setup.STAMP_TABLE.pairs[:1])
    sender, one = wire_setup.stamper(table=everybody), wire_setup.verifier(NOW, table=table)
    own = PrefixMap((prefix, True) for prefix in ends.own_destinations)
    packet = bytes(ip6() / tcp())
    seen = set()
    for source, destination in ends.draw():
        bare = packet[:8] + source + destination + packet[40:]
        scented = sender.stamp(bare)
        outcome, ran = one.verify(scented), kernel.verify(scented, NOW)
        verdict = "accepted" if isinstance(outcome, bytes) else f"{layout.VERDICTS[outcome.verdict]}:drop"
        assert ran.counts == ({verdict: 1} if own.get(destination) else {})
        assert ran.packet == (bare if verdict == "accepted" else scented)
        seen.add(verdict)
    assert seen == {"accepted", "wrong-address:drop"}
    assert kernel.nodes() == {pair: set(nodes) for pair, nodes in one.drain_nodes().items()}


def test_new_tables_are_looked_at_anew(kernel):
    kernel.stamp_by()
    kernel.verify_by()
    kernel.fresh_stamper()
    kernel.fresh_verifier()
    assert kernel.stamp(PLAIN).counts == {"stamped": 1}
    assert kernel.verify(SCENTED, NOW).counts == {"accepted": 1}
    kernel.stamp_by(replace(wire_setup.STAMP_TABLE, limits=(("198.51.100.0/24", 75),)))
    assert kernel.stamp(PLAIN).counts == {"unstamped:too-big": 1}
    moved = replace(wire_setup.incoming("alice", "bob"), peer=("192.0.2.128/25",))
    kernel.verify_by(replace(wire_setup.VERIFY_TABLE, incoming=(moved,)))
    assert kernel.verify(SCENTED, NOW).counts == {"wrong-address:drop": 1}
    gone = replace(moved, network=("198.51.100.128/25",))
    kernel.verify_by(replace(wire_setup.VERIFY_TABLE, incoming=(gone,)))
    assert kernel.verify(SCENTED, NOW).counts == {}
