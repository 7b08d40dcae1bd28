"""Verdicts, marks and floods with the offload: test_verdicts.py once more, and what only maps and marks show.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      a has an identity and no daemon: what it sends is made by hand
"""

from __future__ import annotations

import os
import random
import re
import socket
import struct
import time

import forge
import msgspec
import pytest
import test_verdicts
from compiled import bpffs
from edges import grown, in_place, offloaded, offloaded_pair, totals
from hosts import answered, pair, peer_of, start, until

from scentd.datapath.offload import pins
from scentd.datapath.offload.bpfmap import Map
from scentd.datapath.offload.programs import maps_directory
from scentd.model import Statement
from scentd.wire import ip, layout, tag

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
LOADED = Statement(5, 0.8, {"cpu": 0.8, "threat": 0.4}, frozenset())
ALARMED = Statement(5, 0.8, {"cpu": 0.8, "threat": 1.0}, frozenset())
MARK = 0x00FF0000
IP_OPTIONS, IPV6_HOPOPTS = 4, 54
ROUTER_ALERT = {4: b"\x94\x04\0\0", 6: b"\0\0\x05\x02\0\0\x01\0"}
FLOOD = 20000

# The same tests, on the hosts of this file; in their order, because epochs go up.
treatment = test_verdicts.treatment
test_treatments = test_verdicts.test_treatments
test_every_reason_is_counted_under_its_name = test_verdicts.test_every_reason_is_counted_under_its_name
test_a_scent_of_another_flow_is_refused = test_verdicts.test_a_scent_of_another_flow_is_refused


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with offloaded_pair("ev", tmp_path_factory.mktemp("ev"), issues=False) as (a, b):
        for address in ("10.1.0.9/24", "fd00:1::9/64"):
            a.host.ip(f"addr add {address} dev {a.host.interfaces[0]}")
        start(b)
        in_place(b)
        yield a, b


def test_the_program_decides(nodes):
    """A plain packet with a right scent never sees the queue; one with a neighbour's option does."""
    a, b = nodes
    b.peers = [peer_of(a, absent="drop")]
    b.reload()
    before = totals(b)
    right = forge.issued(a.identity, b, newest(a, b))
    send(a, b, 4, right)
    until(lambda: grown(b, before) == {"accepted": 1}, "the program accepts")
    send(a, b, 4, right, ROUTER_ALERT[4])
    until(lambda: grown(b, before) == {"accepted": 2, "other:offload_declined": 1}, "the queue accepts")


def newest(a, b) -> int:
    """An epoch that is fresh and not below one that was accepted before."""
    return max(b.epoch(a), int(time.time()))


def send(a, b, version, outgoing, more=b"", index=0):
    """One scented datagram that must arrive; `more` goes before the scent."""
    with b.socket(version) as receiver:
        to = receiver.getsockname()[:2]
        with forge.connected(a, to) as end:
            made = forge.scent(end, to, outgoing, index)
            forge.attach(end, made)
            if more and version == 4:
                option = bytes((layout.IPV4_OPTION_TYPE, layout.IPV4_OPTION_LEN)) + made
                end.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, more + option)
            elif more:
                end.setsockopt(socket.IPPROTO_IPV6, IPV6_HOPOPTS, more)
            end.send(b"x")
            assert receiver.recv(100) == b"x"


# -- the mark --------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["offload", "queue"])
def marking(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("em")
    with bpffs(directory / "bpf") as bpf, pair("em", directory, issues=False) as (a, b):
        b.peers = [peer_of(a, absent="pass")]
        b.sections["verify"] = {"mark_glance": MARK}
        if request.param:
            offloaded(bpf, b)
        for program in ("iptables", "ip6tables"):
            for value in range(256):
                b.host.run(program, "-w", "-A", "INPUT", "-p", "udp", "-m", "mark", "--mark", f"{value << 16}/{MARK}")
        start(b)
        in_place(b)
        yield a, b


@BOTH
@pytest.mark.parametrize("more", [False, True], ids=["plain", "with-an-option"])
def test_the_mark_says_load_and_threat(marking, version, more):
    """verify.mark_glance: accepted packets carry it in either datapath, packets without a scent do not."""
    a, b = marking
    before = marked(b, version)
    send(a, b, version, forge.issued(a.identity, b, int(time.time()), LOADED), ROUTER_ALERT[version] if more else b"")
    with a.socket(version) as one, b.socket(version) as other:
        assert answered(one, other)
    now = marked(b, version)
    want = {tag.glance(0.8, 0.4): 1, 0: 1}
    assert {value: n - before[value] for value, n in now.items() if n != before[value]} == want


def marked(b, version) -> dict[int, int]:
    """Packets counted by each of our rules, by the value of the mark."""
    lines = b.host.out("iptables-save" if version == 4 else "ip6tables-save", "-c", "-t", "filter").splitlines()
    found = {}
    for line in lines:
        match = re.match(r"\[(\d+):.*-A INPUT -p udp -m mark --mark (\w+)/0xff0000", line)
        if match:
            found[int(match[2], 16) >> 16] = int(match[1])
    assert len(found) == 256
    return found


# -- an alarm --------------------------------------------------------------------


def test_the_first_packet_of_an_alarm_quarantines(tmp_path):
    """One packet's glance is enough for a policy; then the program drops, and nftables knows of it."""
    with offloaded_pair("eq", tmp_path, issues=False) as (a, b):
        b.peers = [peer_of(a)]
        do = {"kind": "quarantine", "target": "network", "timeout": "60s"}
        b.sections["policy"] = [{"name": "isolate", "when": "threat >= 0.5", "do": do}]
        start(b)
        in_place(b)
        epoch = int(time.time())
        for index in range(layout.FRAGMENTS):
            send(a, b, 4, forge.issued(a.identity, b, epoch), index=index)
        until(lambda: b.profile(a), "a profile of a calm network")
        send(a, b, 4, forge.issued(a.identity, b, epoch + 1, ALARMED))
        until(lambda: b.resources("quarantine"), "one packet is enough")
        before = totals(b)
        with a.socket(4) as one, b.socket(4) as other:
            until(lambda: not answered(one, other, seconds=0.1), "the node is cut off")
            until(lambda: grown(b, before).get("other:offload_quarantined", 0) >= 1, "by the program")
        assert a.host.ipv4 in b.host.out("nft", "list", "table", "inet", "scentd")


# -- a flood ---------------------------------------------------------------------


def test_a_flood_of_forgeries_creates_nothing(nodes):
    """Random senders, the peer's address and key id with random tags: counted by reason, no map grows."""
    a, b = nodes
    b.peers = [peer_of(a, absent="drop")]
    b.reload()
    right = forge.issued(a.identity, b, newest(a, b))
    send(a, b, 4, right)
    sizes = {name: contents(b, name) for name in ("verify-receiving", "verify-identities")}
    before = totals(b)
    dice = random.Random(1)  # noqa: S311
    with a.host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as end:
        end.bind((a.host.interfaces[0], 0x0800))
        header = ethernet(a, b)
        for n in range(FLOOD):
            end.send(header + forgery(a, b, right, n, dice))
            if n % 1000 == 0:
                send(a, b, 4, right)  # the peer's own traffic goes on
                assert len(contents(b, "verify-nodes")) <= 1
    counted = until(lambda: sum(flooded(b, before).values()) >= FLOOD and flooded(b, before), "all are counted")
    assert counted == dict.fromkeys(
        ("rejected:unknown-key", "rejected:wrong-address", "rejected:bad-tag", "rejected:future"), FLOOD // 4
    )
    assert "other:offload_declined" not in grown(b, before)
    assert {name: contents(b, name).keys() for name in sizes} == {name: had.keys() for name, had in sizes.items()}
    assert contents(b, "verify-identities") == sizes["verify-identities"]
    assert {key[4:] for key in contents(b, "verify-nodes")} <= {
        b"\x04\0\0\0" + socket.inet_aton(a.host.ipv4) + bytes(12)
    }


def forgery(a, b, right, n: int, dice: random.Random) -> bytes:
    """An IPv4 packet of 78 bytes with a scent; which part of it is made up goes in turns of four."""
    source = dice.randbytes(4) if n % 4 < 2 else socket.inet_aton(a.host.ipv4)
    out = msgspec.structs.replace(
        right, tag_key=dice.randbytes(16), epoch=right.epoch + (1000 if n % 4 == 3 else n % 3)
    )
    if n % 4 == 0:
        out = msgspec.structs.replace(out, key_id=dice.randbytes(4))
    ports = dice.randbytes(4)
    found = ip.Parsed(4, protocol=ip.UDP, source=source, destination=socket.inet_aton(b.host.ipv4), ports=ports)
    option = bytes((layout.IPV4_OPTION_TYPE, layout.IPV4_OPTION_LEN)) + forge.stamp.build_scent(out, found, n % 10)
    udp = ports + struct.pack(">HH", 22, 0) + dice.randbytes(14)
    head = struct.pack(">BBHHHBBH4s4s", 0x4E, 0, 56 + len(udp), n & 0xFFFF, 0, 64, ip.UDP, 0, source, found.destination)
    head += option
    return head[:10] + ip.checksum(head).to_bytes(2, "big") + head[12:] + udp


def ethernet(a, b) -> bytes:
    """The header of a frame from a to b."""
    names = [host.out("cat", f"/sys/class/net/{host.interfaces[0]}/address").strip() for host in (b.host, a.host)]
    return b"".join(bytes.fromhex(name.replace(":", "")) for name in names) + b"\x08\0"


def flooded(b, before: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in grown(b, before).items() if name.startswith("rejected")}


def contents(b, name: str) -> dict[bytes, bytes]:
    """A map of the running daemon's programs."""
    fd = pins.get(str(maps_directory(str(b.pin_dir)) / name))
    assert fd is not None
    try:
        return dict(Map(fd).items())
    finally:
        os.close(fd)
