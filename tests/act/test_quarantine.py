"""Quarantine in the real kernel.

node 10.7.0.1, fd07::1 ------ host 10.7.0.2, fd07::2
"""

import socket
import threading
import time
from contextlib import closing, suppress
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from topology import Topology

from scentd import act
from scentd.act.quarantine import TIMEOUT_SLACK, QuarantineActuators, QuarantineTable, difference
from scentd.errors import HostError
from scentd.kinds import config_from

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def net():
    with Topology("actq") as made:
        node, host = made.host("node"), made.host("host")
        made.link(node, host, ipv4="10.7.0.0/24", ipv6="fd07::/64")
        yield made


@pytest.fixture
def host(net):
    yield net.hosts["host"]
    net.hosts["host"].call(act.cleanup)


@pytest.fixture
def node(net):
    return net.hosts["node"]


def do(host, method, *args):
    """Call a method of a QuarantineTable in the host."""

    def inside():
        with closing(QuarantineTable()) as actuator:
            return getattr(actuator, method)(*args)

    return host.call(inside)


def answers(node, host, family=4, wait=5.0):
    """Whether a datagram from the node comes in at the host; sent again and again, as its address may be unknown."""
    kind = (socket.AF_INET if family == 4 else socket.AF_INET6), socket.SOCK_DGRAM
    end = time.monotonic() + wait
    with host.call(socket.socket, *kind) as receiver, node.call(socket.socket, *kind) as sender:
        receiver.bind((host.ipv4 if family == 4 else host.ipv6, 0))
        receiver.settimeout(0.05)
        while time.monotonic() < end:
            sender.sendto(b"x", receiver.getsockname())
            with suppress(TimeoutError):
                return receiver.recv(10) == b"x"
    return False


def silent(node, host, family=4):
    return not answers(node, host, family, wait=0.3)


@pytest.mark.parametrize(
    ("target", "family"),
    [("10.7.0.1/32", 4), ("10.7.0.0/25", 4), ("10.0.0.0/8", 4), ("fd07::1/128", 6), ("fd07::/64", 6), ("fd00::/9", 6)],
)
def test_drops_this_source_and_no_other(host, node, target, family):
    assert do(host, "quarantine", {ip_network(target): 60.0}) == 1
    assert silent(node, host, family)
    assert answers(node, host, 10 - family)
    assert do(host, "observe")[f"dropped_ipv{family}"] >= 1
    assert do(host, "observe")[f"dropped_ipv{10 - family}"] == 0
    assert do(host, "quarantine", {}) == 1
    assert answers(node, host, family)


def test_a_neighbouring_address_passes(host, node):
    do(host, "quarantine", {ip_network("10.7.0.3/32"): 60.0, ip_network("10.7.1.0/24"): 60.0})
    assert answers(node, host)


def test_the_kernel_releases_after_the_timeout(host, node):
    do(host, "quarantine", {ip_network("10.7.0.1/32"): 0.5})  # rounded up to a second
    start = time.monotonic()
    assert silent(node, host)
    while not answers(node, host, wait=0.1):
        assert time.monotonic() - start < 5
    assert time.monotonic() - start > 0.7
    assert do(host, "read") == {}


def test_have_apply_again_extend_shorten_overlap(host, node):
    wide, narrow, six = ip_network("10.0.0.0/8"), ip_network("10.7.0.0/24"), ip_network("fd07::/64")
    assert do(host, "quarantine", {wide: 30.0, narrow: 60.0, six: 60.0}) == 3
    have = do(host, "read")
    assert set(have) == {wide, narrow, six}
    assert 27 < have[wide] <= 30
    assert do(host, "quarantine", {wide: 30.0, narrow: 60.0, six: 60.0}) == 0
    assert do(host, "quarantine", {wide: 90.0, narrow: 10.0}) == 3
    have = do(host, "read")
    assert 87 < have[wide] <= 90
    assert 7 < have[narrow] <= 10
    assert do(host, "quarantine", {narrow: 10.0}) == 1
    assert silent(node, host)


def test_takes_effect_within_milliseconds(host, node):
    """UDP arrives until hold() is called and not after it returned."""

    def inside():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, closing(QuarantineTable()) as actuator:
            receiver.bind((host.ipv4, 7000))
            receiver.settimeout(2)
            receiver.recv(100)
            actuator.quarantine({ip_network("10.7.0.2/32"): 60.0})  # table and set are there
            start = time.monotonic()
            actuator.quarantine({ip_network("10.7.0.1/32"): 60.0})
            took = time.monotonic() - start
            receiver.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    receiver.recv(100)  # what came in before
            receiver.settimeout(0.2)
            with pytest.raises(TimeoutError):
                receiver.recv(100)
            return took

    stop = threading.Event()

    def flood():
        with node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.wait(0.001):
                sender.sendto(b"x", (host.ipv4, 7000))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert host.call(inside) < 0.1
    finally:
        stop.set()
        thread.join()


def test_loopback_is_let_through(host):
    do(host, "quarantine", {ip_network("10.7.0.0/24"): 60.0})
    assert answers(host, host)
    assert do(host, "observe")["dropped_ipv4"] == 0


def test_what_others_took_away_comes_back(host, node):
    want = {ip_network("10.7.0.1/32"): 60.0}
    do(host, "quarantine", want)
    for name in ("prerouting", "verified"):
        host.run("nft", "flush", "chain", "inet", "scentd", name)
    assert answers(node, host)
    do(host, "quarantine", want)
    assert silent(node, host)
    host.run("nft", "flush", "ruleset")
    assert answers(node, host)
    assert do(host, "quarantine", want) == 1
    assert silent(node, host)
    chain = ("inet", "scentd", "prerouting")
    (loopback,) = (r for r in host.out("nft", "-a", "list", "chain", *chain).splitlines() if '"lo" return' in r)
    host.run("nft", "delete", "rule", *chain, "handle", loopback.split()[-1])
    do(host, "quarantine", want)
    rules = host.out("nft", "list", "chain", *chain)
    assert rules.count(" goto ") == 1
    assert rules.index('"lo"') < rules.index("@ipv4_32")


def test_touches_its_own_table_only(host):
    host.run("nft", "add table inet other; add set inet other ipv4_32 { type ipv4_addr; elements = { 1.2.3.4 } }")
    before = host.out("nft", "list", "table", "inet", "other")
    do(host, "quarantine", {ip_network("10.7.0.1/32"): 60.0})
    assert do(host, "remove") is True
    assert do(host, "remove") is False
    assert host.call(QuarantineActuators().remove_all) == []
    assert host.out("nft", "list", "ruleset") == before
    host.run("nft", "delete", "table", "inet", "other")


def test_cleanup_twice(host):
    do(host, "quarantine", {ip_network("10.7.0.1/32"): 60.0})
    assert host.call(act.cleanup) == ["nftables table inet scentd"]
    assert host.call(act.cleanup) == []


def test_an_error_of_the_kernel_is_a_host_error(host):
    host.run("nft", "add table inet scentd; add set inet scentd ipv4_32 { type ipv6_addr; }")
    with pytest.raises(HostError, match="nftables: "):
        do(host, "quarantine", {ip_network("10.7.0.1/32"): 60.0})


def test_thousands_at_once(host):
    want = {ip_network((0x0B000000 + i, 32)): 60.0 for i in range(3000)}
    assert do(host, "quarantine", want) == 3000
    assert do(host, "quarantine", want) == 0
    assert do(host, "quarantine", {}) == 3000


# --- what has to change


NODE, OTHER = ip_network("10.0.0.7/32"), ip_network("fd00::7/128")
SECONDS = st.dictionaries(
    st.sampled_from([NODE, OTHER, ip_network("10.0.0.0/24"), ip_network("10.0.0.0/8")]), st.floats(1, 1000)
)


def test_what_is_there_long_enough_is_left_alone():
    assert difference({}, {NODE: 50.0}) == ([], {NODE: 50.0})
    assert difference({NODE: 49.0}, {NODE: 50.0}) == ([], {})
    assert difference({NODE: 30.0}, {NODE: 50.0}) == ([], {NODE: 50.0})
    assert difference({OTHER: 5.0}, {}) == ([OTHER], {})


@given(SECONDS, SECONDS)
def test_the_difference_leads_from_any_state_to_the_wanted_one(have, want):
    gone, new = difference(have, want)
    after = {p: seconds for p, seconds in have.items() if p not in gone} | new
    assert after.keys() == want.keys()
    assert all(after[p] == pytest.approx(want[p], abs=TIMEOUT_SLACK) for p in want)
    assert difference(after, want) == ([], {})


def test_a_quarantine_without_protected_addresses_is_noted():
    policies = [{"name": "isolate", "when": "true", "do": {"kind": "quarantine"}}]
    (note,) = QuarantineActuators().notes(config_from({"policy": policies}))
    assert "isolate: may quarantine any address" in note
    assert "allocator.protected" in note
    assert QuarantineActuators().notes(config_from({"policy": policies, "allocator": {"protected": ["::1"]}})) == []
    assert QuarantineActuators().notes(config_from({})) == []


def test_what_looks_scented_gets_no_farther_than_the_verifier(host, node):
    """Options that are no scent's: the chain behind the queue drops them, and the first one all beyond the rate."""
    host.call(act.cleanup)
    do(host, "quarantine", {ip_network("10.7.0.1/32"): 60.0})
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((host.ipv4, 0))
        receiver.settimeout(0.3)
        with node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, 4, b"\x01\x01\x01\x00")  # IP_OPTIONS
            for _ in range(5):
                sender.sendto(b"x", receiver.getsockname())
            with pytest.raises(TimeoutError):
                receiver.recv(1)
    assert do(host, "observe")["dropped_ipv4"] >= 5
    assert " goto hear_ipv4" in host.out("nft", "list", "table", "inet", "scentd")
