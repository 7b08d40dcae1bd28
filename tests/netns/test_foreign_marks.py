"""Other programs write packet marks: nothing accepted is lost by that, and nothing refused comes in.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      each the other's strict peer; who is refused is told
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import forge
import pytest
from edges import reached, strict_ends
from hosts import Node, answered, peer_of, transfer, until

pytestmark = pytest.mark.netns

NOBODYS = bytes.fromhex("5ce710") + bytes(9) + b"\x0a" + bytes(21)  # a scent of key id 0
PROHIBITED = {4: errno.EHOSTUNREACH, 6: errno.EACCES}
# A full tunnel as wg-quick sets it up: each connection's mark comes back on its packets.
WG_QUICK = """table FAMILY wg-quick-wg0 {
  chain premangle { type filter hook prerouting priority -150; meta l4proto { tcp, udp } meta mark set ct mark; }
  chain postmangle { type filter hook postrouting priority -150; meta l4proto udp mark 0xca6c ct mark set mark; }
}
"""


@pytest.fixture(scope="module", params=["queue", "offload"])
def nodes(request, tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    with strict_ends("fm", tmp_path_factory.mktemp("fm"), request.param == "offload") as (a, b):
        for node, other in ((a, b), (b, a)):
            node.peers = [peer_of(other, rejected="reject", absent="reject")]
            node.reload()
        yield a, b


@contextmanager
def wg_quick(node: Node) -> Iterator[None]:
    for family in ("ip", "ip6"):
        node.host.run("nft", "-f", "-", input=WG_QUICK.replace("FAMILY", family))
    yield
    for family in ("ip", "ip6"):
        node.host.run("nft", "delete", "table", family, "wg-quick-wg0")


def iptables(*rule: str) -> Callable[[Node], object]:
    @contextmanager
    def rules(node: Node) -> Iterator[None]:
        for program in ("iptables", "ip6tables"):
            node.host.run(program, "-w", *rule)
        yield
        for program in ("iptables", "ip6tables"):
            node.host.run(program, "-w", *("-D" if word == "-A" else word for word in rule))

    return rules


WRITERS = {
    "wg-quick": wg_quick,
    "restored marks": iptables("-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--restore-mark"),
    "a mark for all that comes": iptables("-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "5"),
    "a mark for all that goes": iptables("-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "5"),
    "saved marks": iptables("-t", "mangle", "-A", "POSTROUTING", "-j", "CONNMARK", "--save-mark"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_accepted_packets_arrive_and_refused_ones_do_not(nodes, writer):
    a, b = nodes
    with WRITERS[writer](a), WRITERS[writer](b):
        for _ in range(3):
            assert reached(a, b) == reached(b, a) == [True, True]
        absent = b.status()["absent"]
        for version in (4, 6):
            transfer(a, b, version, 1 << 18)
            refused(a, b, version)
        assert b.status()["absent"] == absent


def refused(a: Node, b: Node, version: int) -> None:
    """A forged scent is dropped, and its sender is told."""
    with b.listener(version) as listening, b.socket(version) as receiver:
        to = listening.getsockname()[:2]
        with forge.connected(a, to, socket.SOCK_STREAM) as end:
            forge.attach(end, NOBODYS)
            end.settimeout(10)
            with pytest.raises(ConnectionRefusedError):
                end.connect(to)
        with forge.connected(a, receiver.getsockname()[:2]) as end:
            forge.attach(end, NOBODYS)
            assert not answered(end, receiver, seconds=0.3)
            end.settimeout(5)
            until(lambda: error_of(end, b"again") == PROHIBITED[version], "its sender is told")
        listening.settimeout(0)
        with pytest.raises(BlockingIOError):
            listening.accept()


def error_of(end: socket.socket, data: bytes) -> int | None:
    try:
        end.send(data)
    except OSError as error:
        return error.errno
    return None


def test_a_rule_that_writes_before_marks_are_read_is_told(nodes):
    """Nothing of ours can be read earlier; such a rule has to make room, and doctor says which."""
    _, b = nodes
    with wg_quick(b), iptables("-t", "raw", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "5")(b):
        found = b.cli("doctor", timeout=90).stdout
    assert "wg-quick" not in found
    assert "-t raw -A PREROUTING -j MARK --set-xmark 0x5/0xffffffff" in found
    assert "before they are read" in found
