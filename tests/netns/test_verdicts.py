"""What happens to packets that are not accepted, under every setting, and where they are counted.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      a has an identity and no daemon: what it sends is made by hand
"""

from __future__ import annotations

import errno
import json
import socket
import time

import forge
import pytest
from hosts import Node, answered, pair, peer_of, start, until

from scentd.state import key_files
from scentd.wire import keys, layout

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
TREATMENTS = ("drop", "reject", "pass")
NOBODYS = bytes.fromhex("5ce710") + bytes(9) + b"\x0a" + bytes(21)  # a scent of key id 0
PROHIBITED = {4: errno.EHOSTUNREACH, 6: errno.EACCES}  # ICMP code 13 and ICMPv6 code 1, as sockets report them


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("vd", tmp_path_factory.mktemp("vd"), issues=False) as (a, b):
        for address in ("10.1.0.9/24", "fd00:1::9/64"):
            a.host.ip(f"addr add {address} dev {a.host.interfaces[0]}")
        start(b)
        yield a, b


@pytest.fixture(params=TREATMENTS)
def treatment(request, nodes):
    """b treats rejected and absent packets of a like this, in this test alone."""
    a, b = nodes
    usual, b.peers = b.peers, [peer_of(a, rejected=request.param, absent=request.param)]
    b.reload()
    yield request.param
    b.peers = usual
    b.reload()


def try_tcp(a: Node, target: tuple[str, int], scented: bool) -> str:
    with forge.connected(a, target, socket.SOCK_STREAM) as end:
        if scented:
            forge.attach(end, NOBODYS)
        end.settimeout(1)
        began = time.monotonic()
        try:
            end.connect(target)
        except ConnectionRefusedError:
            assert time.monotonic() - began < 1
            return "reject"
        except TimeoutError:
            return "drop"
        return "pass"


def try_udp(a: Node, receiver: socket.socket, version: int, scented: bool) -> str:
    with forge.connected(a, receiver.getsockname()[:2]) as end:
        if scented:
            forge.attach(end, NOBODYS)
        if answered(end, receiver, seconds=0.5):
            return "pass"
        try:
            end.settimeout(0.5)
            end.send(b"again")
        except OSError as error:
            return "reject" if error.errno == PROHIBITED[version] else errno.errorcode[error.errno or 0]
        return "drop"


@BOTH
@pytest.mark.parametrize("scented", [True, False], ids=["rejected", "absent"])
def test_treatments(nodes, treatment, version, scented):
    """Invariant 3: a packet that is refused does not reach the host when the policy says drop or reject."""
    a, b = nodes
    before = b.status()
    with b.listener(version) as listening, b.socket(version) as receiver:
        assert try_tcp(a, listening.getsockname()[:2], scented) == treatment
        assert try_udp(a, receiver, version, scented) == treatment
        listening.settimeout(0)
        if treatment != "pass":
            with pytest.raises(BlockingIOError):
                listening.accept()
    key = f"{'unknown-key' if scented else 'absent'}:{treatment}"
    until(lambda: b.status()["treated"].get(key, 0) >= before["treated"].get(key, 0) + 2, f"{key} counts")


def wrong(a: Node, b: Node, version: int) -> dict[str, tuple[str, bytes]]:
    """For each reason to refuse (source address, scent), the tag right wherever it does not matter."""
    now = int(time.time())
    stranger = keys.identity(key_files.parse_secret(key_files.generate()))
    made = {}

    def packet(reason: str, outgoing, source: str = "", change=lambda s: s, **more) -> None:
        made[reason] = (source, outgoing, change, more)

    mine = forge.issued(a.identity, b, now)
    packet("malformed", mine, change=lambda s: s[:20])
    packet("unsupported-version", mine, change=lambda s: forge.bent(s, 2, 0x21))
    packet("unknown-key", forge.issued(stranger, b, now))
    packet("wrong-address", mine, source="10.1.0.9" if version == 4 else "fd00:1::9")
    packet("wrong-binding", mine, sender_bound=True)
    packet("future", forge.issued(a.identity, b, now + 60))
    packet("stale", forge.issued(a.identity, b, now - 120))
    packet("bad-tag", mine, change=lambda s: forge.bent(s, 33, s[33] ^ 1))
    return made


@BOTH
def test_every_reason_is_counted_under_its_name(nodes, version):
    """Invariant 1: each of these is refused; none is delivered, and `status --json` says why."""
    a, b = nodes
    b.peers = [peer_of(a)]
    before = b.reload()["rejected"]
    assert set(before) == set(layout.VERDICTS.values()) - {"accepted", "absent"}
    with b.socket(version) as receiver:
        for source, outgoing, change, more in wrong(a, b, version).values():
            send(a, receiver, outgoing, source, change, **more)
        highest = max(b.epoch(a), int(time.time()) - 30)
        for epoch in range(highest + 1, highest + 4):
            if epoch == highest + 3:  # of epochs first seen in one second the one before them all has the grace
                time.sleep(1.1)
            send(a, receiver, forge.issued(a.identity, b, epoch))
            assert receiver.recv(100) == b"x", "a right one is accepted"
        send(a, receiver, forge.issued(a.identity, b, highest + 1))
        receiver.settimeout(0.3)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
    want = {reason: count + 1 for reason, count in before.items()}
    shown = until(lambda: rejected(b) == want and want, f"{want}, not {rejected(b)}")
    assert shown == want


def rejected(b: Node) -> dict[str, int]:
    return json.loads(b.cli("status", "--json").stdout)["rejected"]


def send(a: Node, receiver: socket.socket, outgoing, source: str = "", change=lambda s: s, **more) -> None:
    to = receiver.getsockname()[:2]
    with forge.connected(a, to, source=source) as end:
        forge.attach(end, change(forge.scent(end, to, outgoing, **more)))
        end.send(b"x")


@BOTH
def test_a_scent_of_another_flow_is_refused(nodes, version):
    """The tag binds addresses and ports: moved to another port it is a bad tag."""
    a, b = nodes
    bad = b.status()["rejected"]["bad-tag"]
    with b.socket(version) as receiver, b.socket(version) as other:
        to = receiver.getsockname()[:2]
        with forge.connected(a, to) as one, forge.connected(a, other.getsockname()[:2]) as two:
            made = forge.scent(one, to, forge.issued(a.identity, b, int(time.time()) + 1))
            forge.attach(one, made)
            one.send(b"x")
            assert receiver.recv(100) == b"x"
            forge.attach(two, made)
            two.send(b"x")
            other.settimeout(0.3)
            with pytest.raises(TimeoutError):
                other.recv(100)
    until(lambda: b.status()["rejected"]["bad-tag"] == bad + 1, "the bad tag is counted")


def test_ten_packets_make_a_profile(nodes):
    """A few packets of any kind complete a profile, whatever their order; what it says is shown."""
    a, b = nodes
    epoch = int(time.time()) + 3
    with b.socket(4) as receiver:
        to = receiver.getsockname()[:2]
        for index in reversed(range(layout.FRAGMENTS)):
            with forge.connected(a, to) as end:
                forge.attach(end, forge.scent(end, to, forge.issued(a.identity, b, epoch), index))
                end.send(b"x")
                assert receiver.recv(100) == b"x"
    profile = until(lambda: (p := b.profile(a)) and p["epoch"] == epoch and p, "the profile is whole")
    assert profile["levels"] == {"cpu": 0.5}
    assert profile["overall"] == 0.5
