"""Captures, copies of frames and counters in the real kernel.

host 10.8.0.1, fd08::1 ------ bridge ------ left 10.8.0.2, fd08::2; right 10.8.0.3, fd08::3
host mon0 ------ watch, where copies arrive
"""

import os
import signal
import socket
import subprocess
import time
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import pytest
from hosts import SLOWNESS
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.utils import rdpcap
from shaping import MBIT, PEERS, InHost, bandwidth, setting
from topology import Topology

from scentd.act.resources.backend import Refused
from scentd.act.resources.bandwidth import BandwidthBackend
from scentd.act.resources.monitor import HALF, MonitorBackend, MonitorResource
from scentd.errors import HostError

pytestmark = pytest.mark.netns

SECONDS = 10.0 * SLOWNESS  # until something is there
GROUP = 5911


@pytest.fixture(scope="module")
def net():
    with Topology("mon") as made:
        hosts = [made.host(name) for name in ("host", "left", "right")]
        made.bridge(hosts, ipv4="10.8.0.0/24", ipv6="fd08::/64")
        made.host("watch")
        make_mirror(made.hosts)
        yield made.hosts


def make_mirror(net):
    net["host"].ip(f"link add mon0 type veth peer name copies netns {net['watch'].namespace}")
    net["host"].sysctl(net_ipv6_conf_mon0_disable__ipv6=1)  # it says nothing of its own
    net["host"].ip("link set mon0 up")
    net["watch"].ip("link set copies up")


@pytest.fixture
def host(net):
    yield net["host"]
    net["host"].call(MonitorBackend.remove_all)
    net["host"].call(BandwidthBackend.remove_all)


def monitor(host, peers=PEERS, **more):
    return closing(
        InHost(host, MonitorBackend(MonitorResource(name="closer", start_timeout=SECONDS, **more), setting(peers)))
    )


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ping(host, *to, size=56):
    for address in to:
        host.run("ping", "-c", "2", "-i", "0.1", "-W", "5", "-s", str(size), address)


def captured(directory):
    """What a stranger's library reads: (source, destination) of all packets."""
    found = []
    for path in directory.glob("*.pcap"):
        for packet in rdpcap(str(path)):
            layer = packet[IP] if IP in packet else packet[IPv6]
            found.append((layer.src, layer.dst))
    return found


def told(path):
    """What tcpdump reads."""
    argv = ["tcpdump", "-nr", path, "-Z", "root"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()


def ended(pid):
    """Also if nobody has taken notice of it yet, as in a guest whose first process does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def frames(watch):
    return int(watch.out("cat", "/sys/class/net/copies/statistics/rx_packets"))


def test_captures_hold_the_named_peers_packets_alone_and_both_ways(net, host, tmp_path):
    with monitor(host, pcap_directory=str(tmp_path / "new" / "captures")) as closer:
        assert closer.observe() == {"left": 0, "right": 0}
        closer.change(left=1)
        assert closer.observe() == {"left": 1, "right": 0}
        for to in ("left", "right"):
            ping(host, net[to].ipv4, net[to].ipv6)
        directory = tmp_path / "new" / "captures"
        expected = {("10.8.0.1", "10.8.0.2"), ("10.8.0.2", "10.8.0.1"), ("fd08::1", "fd08::2"), ("fd08::2", "fd08::1")}
        until(lambda: len(captured(directory)) >= 8)
        assert {pair for pair in captured(directory) if not pair[0].startswith("fe80") and "ff02" not in pair[1]} == (
            expected
        )
        [path] = directory.glob("*.pcap")
        assert "10.8.0.1 > 10.8.0.2: ICMP echo request" in "\n".join(told(path))
        assert path.stat().st_mode & 0o777 == 0o600
        assert closer.observe() == {"left": 1, "right": 0}
        assert closer.backend.setting.tally.all()["closer_packets"] >= 8
        closer.change(left=0)
        assert closer.observe() == {"left": 0, "right": 0}
        assert host.call(MonitorBackend.remove_all) == []
        before = path.stat().st_size
        ping(host, net["left"].ipv4)
        assert path.stat().st_size == before


@pytest.mark.parametrize("family", [4, 6])
def test_frames_of_the_named_peer_alone_are_copied(net, host, family):
    address = {name: net[name].ipv4 if family == 4 else net[name].ipv6 for name in ("left", "right")}
    with monitor(host, mirror_to="mon0", interfaces=[host.interfaces[0]]) as closer:
        closer.change(right=1)
        assert closer.observe() == {"left": 0, "right": 1}
        ping(host, *address.values())
        before = frames(net["watch"])
        ping(host, address["left"], size=1000)
        assert frames(net["watch"]) == before
        ping(host, address["right"], size=1000)
        assert frames(net["watch"]) >= before + 4
        closer.change(right=0)
        before = frames(net["watch"])
        ping(host, address["right"])
        assert frames(net["watch"]) == before


def test_what_comes_in_is_copied_too_where_it_is_shaped(net, host):
    interface = host.interfaces[0]
    with (
        bandwidth(host, direction="in") as ceilings,
        monitor(host, mirror_to="mon0", interfaces=[interface]) as closer,
    ):
        ping(host, net["left"].ipv4)
        closer.change(left=1)
        ceilings.change(left=10 * MBIT)
        assert closer.observe()["left"] == 1
        before = frames(net["watch"])
        ping(host, net["left"].ipv4)
        assert before + 4 <= frames(net["watch"]) <= before + 6  # neighbours may look for one another meanwhile


def test_the_ring_is_bounded_and_its_files_are_whole(net, host, tmp_path):
    more = {"pcap_directory": str(tmp_path), "pcap_files": 3, "pcap_file_size": 100_000}
    (tmp_path / "closer-7.pcap").write_bytes(b"of a longer ring")
    (tmp_path / "other-1.pcap").write_bytes(b"not ours")
    with monitor(host, **more) as closer:
        closer.change(left=1)
        with host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(1000):
                sender.sendto(number.to_bytes(4, "big") * 250, (net["left"].ipv4, 9))
                if number % 50 == 0:
                    time.sleep(0.02)
        until(lambda: len(list(tmp_path.glob("closer-*.pcap"))) == 3)
        time.sleep(0.5)
        paths = sorted(tmp_path.glob("closer-*.pcap"))
        assert [path.name for path in paths] == ["closer-0.pcap", "closer-1.pcap", "closer-2.pcap"]
        assert all(path.stat().st_size <= 100_000 for path in paths)
        numbers = {bytes(p[IP].payload.payload)[:4] for path in paths for p in rdpcap(str(path)) if p[IP].proto == 17}
        assert (999).to_bytes(4, "big") in numbers
        assert 100 < len(numbers) < 300
        newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
    assert (tmp_path / "other-1.pcap").read_bytes() == b"not ours"
    with monitor(host, **more) as closer:  # a restart goes on behind the newest one
        assert closer.observe()["left"] == HALF
        closer.change(left=1)
        assert newest.stat().st_size > 24
        assert min(paths, key=lambda path: path.stat().st_size).stat().st_size == 24


def test_only_so_much_of_a_packet_is_written(net, host, tmp_path):
    with monitor(host, pcap_directory=str(tmp_path), snaplen=64) as closer:
        closer.change(left=1)
        ping(host, net["left"].ipv4, net["left"].ipv6, size=1000)
        until(lambda: len(captured(tmp_path)) >= 8)
        [path] = tmp_path.glob("*.pcap")
        packets = [p for p in rdpcap(str(path)) if p.wirelen > 1000]
        assert {(len(p.original), p.wirelen) for p in packets} == {(64, 1028), (64, 1048)}


def test_a_writer_that_was_killed_comes_back(net, host, tmp_path):
    with monitor(host, pcap_directory=str(tmp_path)) as closer:
        closer.change(left=1)
        os.kill(closer.backend._writer._process.pid, signal.SIGKILL)
        until(lambda: closer.observe() == {"left": HALF, "right": 0})
        closer.change(left=1)
        assert closer.observe()["left"] == 1
        ping(host, net["left"].ipv4)
        until(lambda: len(captured(tmp_path)) >= 4)


def test_the_writer_ends_with_the_daemon_however_that_ends(net, host, tmp_path):
    script = (
        "import sys, time; sys.path[:0] = ['tests', 'tests/netns']; from shaping import *\n"
        "from scentd.act.resources.monitor import MonitorBackend, MonitorResource\n"
        f"section = MonitorResource(name='closer', start_timeout={SECONDS}, pcap_directory={str(tmp_path)!r})\n"
        "backend = MonitorBackend(section, setting(PEERS)); backend.change('left', 1)\n"
        "print(backend._writer._process.pid, flush=True); time.sleep(60)"
    )
    argv = ["nsenter", f"--net=/run/netns/{host.namespace}", os.sys.executable, "-c", script]
    daemon = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        writer = int(daemon.stdout.readline())
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    until(lambda: ended(writer))
    with monitor(host, pcap_directory=str(tmp_path)) as closer:
        assert closer.observe() == {"left": HALF, "right": 0}
        closer.change(left=0)
        assert closer.observe() == {"left": 0, "right": 0}


def flush(host):
    host.run("nft", "flush", "ruleset")


def remove_rule(host):
    host.run("nft", "flush", "chain", "inet", f"scentd_monitor_{GROUP}", "to_peers")


def remove_element(host):
    host.run("nft", "flush", "set", "inet", f"scentd_monitor_{GROUP}", "ipv6_128")


def remove_filters(host):
    host.run(*f"tc filter del dev {host.interfaces[0]} egress prio {23000 + 4 * GROUP + 2}".split())


def renew_mirror(host):
    host.ip("link del mon0", "link add mon0 type veth peer name copies2", "link set mon0 up")


@pytest.mark.parametrize("breakage", [flush, remove_rule, remove_element, remove_filters, renew_mirror])
def test_what_somebody_changed_is_seen_and_mended(net, host, breakage, tmp_path):
    more = {"mirror_to": "mon0", "interfaces": [host.interfaces[0]], "pcap_directory": str(tmp_path)}
    with monitor(host, **more) as closer:
        closer.change(left=1, right=1)
        assert closer.observe() == {"left": 1, "right": 1}
        breakage(host)
        assert set(closer.observe().values()) in ({0}, {HALF})
        closer.change(left=1)
        closer.change(right=1)
        assert closer.observe() == {"left": 1, "right": 1}
    if breakage is renew_mirror:
        host.ip("link del mon0")
        make_mirror(net)


def test_each_packet_is_taken_once_by_its_longest_prefix(net, host, tmp_path):
    peers = {"left": PEERS["left"], "all": (ip_network("0.0.0.0/0"), ip_network("fd08::/16"))}
    with monitor(host, peers=peers, pcap_directory=str(tmp_path)) as closer:
        closer.change(left=1, all=1)
        assert closer.observe() == {"left": 1, "all": 1}
        ping(host, net["left"].ipv4)
        until(lambda: captured(tmp_path).count(("10.8.0.1", "10.8.0.2")) >= 2)
        ping(host, net["right"].ipv4)
        until(lambda: captured(tmp_path).count(("10.8.0.3", "10.8.0.1")) >= 2)
        assert captured(tmp_path).count(("10.8.0.1", "10.8.0.2")) == 2
        closer.change(all=0)
        assert closer.observe() == {"left": 1, "all": 0}


def test_each_frame_is_copied_once_whoever_is_monitored_around_it(net, host):
    peers = {"left": PEERS["left"], "all": (ip_network("0.0.0.0/0"),)}
    with monitor(host, peers=peers, mirror_to="mon0", interfaces=[host.interfaces[0]]) as closer:
        for amounts in ({"left": 1}, {"all": 1}, {"left": 0}, {"left": 1}, {"all": 0}):
            closer.change(**amounts)
            ping(host, net["left"].ipv4)
            before = frames(net["watch"])
            ping(host, net["left"].ipv4)
            assert frames(net["watch"]) == before + 4
        assert closer.observe() == {"left": 1, "all": 0}


def test_hundreds_of_peers(host):
    """Also those that were on before a burst, and with a change by somebody else in the middle of it."""
    peers = {f"p{n}": (ip_network(f"10.30.{n}.0/24"), ip_network(f"fd30:0:{n:x}::/48")) for n in range(250)}
    with monitor(host, peers=peers, mirror_to="mon0", interfaces=[host.interfaces[0]]) as closer:

        def change(amount, names):
            for name in names:
                closer.backend.change(name, amount)

        names = list(peers)
        host.call(change, 1, names[:100])
        flush(host)
        host.call(change, 1, names[100:])
        found = closer.observe()
        assert {found[name] for name in names[:100]} <= {0, HALF}  # their filters are seen to be too many, or not yet
        assert {found[name] for name in names[100:]} == {1}
        host.call(change, 1, names[:100])
        assert set(closer.observe().values()) == {1}
        host.call(change, 0, names[50:])
        assert closer.observe() == {name: float(n < 50) for n, name in enumerate(names)}
        assert tc_filters(host) == 4 * 50
        host.call(change, 0, names[:50])
        assert tc_filters(host) == 0


def tc_filters(host):
    shown = [host.out("tc", "filter", "show", "dev", host.interfaces[0], side) for side in ("ingress", "egress")]
    return "".join(shown).count("mirred (Egress Mirror")


def test_packets_and_bytes_are_counted(net, host):
    with monitor(host) as closer:
        closer.change(right=1)
        closer.observe()
        ping(host, net["right"].ipv4, size=972)
        closer.observe()
        ping(host, net["right"].ipv4, size=972)
        closer.change(right=0)  # what was counted until then is told
        counts = closer.backend.setting.tally.all()
        assert (counts["closer_packets"], counts["closer_bytes"]) == (8, 8000)


def test_two_resources_beside_each_other(host, tmp_path):
    with (
        monitor(host, pcap_directory=str(tmp_path)) as closer,
        monitor(host, pcap_directory=str(tmp_path), group=7) as other,
        monitor(host, pcap_directory=str(tmp_path)) as same,
    ):
        closer.change(left=1)
        other.change(left=1)
        with pytest.raises(Refused, match="reads group 5911 of NFLOG: write another `group`"):
            same.change(left=1)
        assert closer.observe()["left"] == other.observe()["left"] == 1
        closer.change(left=0)
        assert other.observe()["left"] == 1
        assert host.call(MonitorBackend.remove_all) == ["nftables table inet scentd_monitor_7"]


def test_what_is_missing_is_told(host, tmp_path):
    (tmp_path / "file").write_text("")
    for more, expected in (
        ({"pcap_directory": str(tmp_path / "file")}, "File exists .*/file"),
        ({"mirror_to": "nothere", "interfaces": ["lo"]}, "interface nothere: does not exist"),
        ({"mirror_to": "mon0", "interfaces": ["nothere"]}, "interface nothere: does not exist"),
    ):
        with monitor(host, **more) as closer:
            with pytest.raises(HostError, match=expected):
                closer.change(left=1)
            assert closer.observe() == {"left": 0, "right": 0}
            closer.change(left=0)
    shared = {"left": PEERS["left"], "copy": PEERS["left"]}
    with monitor(host, peers=shared) as closer, pytest.raises(Refused, match="peer copy has no addresses of its own"):
        closer.change(copy=1)
    sections = [MonitorResource(name=name, mirror_to="mon0", interfaces=["nothere"]) for name in "ab"]
    notes = host.call(MonitorBackend.notes, sections)
    assert [note for note in notes if "nothere is not there now" in note] == notes[:2]
    assert "has the group of a" in notes[2]
