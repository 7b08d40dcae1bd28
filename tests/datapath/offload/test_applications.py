"""The program on real cgroups, whose processes send over a real link.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from compiled import bpffs
from groups import Group
from topology import Topology

from scentd.collect.cgroup import UNIFIED, mounted
from scentd.datapath.offload import applications, bpfprog, pins
from scentd.datapath.offload.applications import TYPES, Applications
from scentd.errors import HostError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(UNIFIED not in mounted(), reason="needs a mounted cgroup v2"),
]

NUMBER, SIZE = 100, 1000
UDP = {4: 28, 6: 48}  # bytes of headers
SEND = f"""
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    for _ in range({NUMBER}):
        sock.sendto(bytes({SIZE}), (sys.argv[1], 9))
"""
UPLOAD = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(bytes(10**7))
"""
RECEIVE = """
import socket
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("::", 9))
print("listens", flush=True)
while True:
    sock.recv(2000)
"""


@pytest.fixture(scope="module")
def net():
    with Topology("ap") as net:
        a, b = net.host("a"), net.host("b")
        net.link(a, b, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        yield net


@pytest.fixture
def pin_dir(tmp_path):
    with bpffs(tmp_path / "bpf") as directory:
        yield directory / "scentd"


@pytest.fixture
def all_applications(pin_dir):
    return Applications(str(pin_dir))


@pytest.fixture
def group():
    with Group("app") as group:
        yield group


def send(group, host, address):
    process = group.start(sys.executable, "-c", SEND, address, prefix=tuple(host.argv()))
    assert process.wait(30) == 0


def pinned(pin_dir):
    return sorted(os.listdir(pin_dir / "applications"))


def on(group, *arguments):
    """Programs on the cgroup, as bpftool sees them."""
    argv = ["bpftool", "-j", "cgroup", "show", str(group.paths[UNIFIED]), *arguments]
    return json.loads(subprocess.run(argv, capture_output=True, check=True).stdout.strip() or "[]")


def kill(all_applications):
    """What kill -9 of the daemon leaves."""
    all_applications._loaded.close()


@pytest.mark.parametrize("version", [4, 6])
def test_every_byte_out_and_in_of_the_cgroup_and_those_below(net, all_applications, group, version):
    a, b = net.hosts["a"], net.hosts["b"]
    address = b.ipv4 if version == 4 else b.ipv6
    with Group("in") as receiver, Group("below", group) as below:
        one, two = all_applications.open(), all_applications.open()
        number, *nothing = one.read(group.paths[UNIFIED])
        assert (number, nothing) == (group.paths[UNIFIED].stat().st_ino, [0, 0])
        two.read(receiver.paths[UNIFIED])
        listens = receiver.start(sys.executable, "-c", RECEIVE, prefix=tuple(b.argv()), stdout=subprocess.PIPE)
        listens.stdout.readline()
        send(group, a, address)
        send(below, a, address)
        moved = 2 * NUMBER * (SIZE + UDP[version])
        assert one.read(group.paths[UNIFIED])[2] == moved
        assert two.read(receiver.paths[UNIFIED])[1] == moved
        one.close()
        two.close()


def test_what_is_sent_elsewhere_or_over_lo_does_not_count(net, all_applications, group):
    a, b = net.hosts["a"], net.hosts["b"]
    counter = all_applications.open()
    counter.read(group.paths[UNIFIED])
    with Group("other") as other:
        send(other, a, b.ipv4)
    a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes(SIZE), (b.ipv4, 9)))
    send(group, a, "127.0.0.1")
    send(group, a, a.ipv4)
    assert counter.read(group.paths[UNIFIED])[1:] == (0, 0)
    counter.close()


def test_tcp_of_megabytes(net, all_applications, group):
    """Large sends are one packet with one header each: the payload is there, and few headers."""
    a, b = net.hosts["a"], net.hosts["b"]
    counter = all_applications.open()
    counter.read(group.paths[UNIFIED])
    server = b.call(socket.create_server, (b.ipv4, 0))
    argv = [sys.executable, "-c", UPLOAD, b.ipv4, str(server.getsockname()[1])]
    process = group.start(*argv, prefix=tuple(a.argv()))
    connection, _ = server.accept()
    while connection.recv(1 << 20):
        pass
    assert process.wait(30) == 0
    _, received, sent = counter.read(group.paths[UNIFIED])
    assert 10**7 < sent < 1.06 * 10**7
    assert 0 < received < 10**6
    connection.close()
    server.close()
    counter.close()


def test_with_the_last_counter_nothing_is_left(all_applications, group, pin_dir):
    one, two = all_applications.open(), all_applications.open()
    number, *_ = one.read(group.paths[UNIFIED])
    assert two.read(group.paths[UNIFIED])[0] == number
    assert pinned(pin_dir) == ["bytes", f"link-{number}-egress", f"link-{number}-ingress"]
    assert [p["attach_type"] for p in on(group)] == ["cgroup_inet_ingress", "cgroup_inet_egress"]
    for _ in range(2):
        one.close()
        assert len(on(group)) == 2
    two.close()
    assert on(group) == []
    assert not (pin_dir / "applications").exists()
    with pytest.raises(HostError, match="its source was closed meanwhile"):
        two.read(group.paths[UNIFIED])
    three = all_applications.open()
    assert three.read(group.paths[UNIFIED]) == (number, 0, 0)
    three.close()


def test_a_cgroup_that_goes_and_comes_back(net, all_applications, group, pin_dir):
    a, b = net.hosts["a"], net.hosts["b"]
    path, counter = group.paths[UNIFIED], all_applications.open()
    first, *_ = counter.read(path)
    send(group, a, b.ipv4)
    assert counter.read(path)[2] > 0
    group.started.clear()
    path.rmdir()
    with pytest.raises(HostError, match=f"cgroup {path}: No such file or directory"):
        counter.read(path)
    path.mkdir()
    second, *totals = counter.read(path)
    assert second != first
    assert totals == [0, 0]
    assert pinned(pin_dir) == ["bytes", f"link-{second}-egress", f"link-{second}-ingress"]
    counter.close()


def test_a_killed_daemons_counters_go_on_and_are_taken_over(net, all_applications, group, pin_dir):
    a, b = net.hosts["a"], net.hosts["b"]
    with Group("left") as left:
        for one in (group, left):
            all_applications.open().read(one.paths[UNIFIED])
        kill(all_applications)
        send(group, a, b.ipv4)
        before = {p["id"] for p in on(group)}
        successor = Applications(str(pin_dir))
        counter = successor.open()
        assert counter.read(group.paths[UNIFIED])[2] == NUMBER * (SIZE + UDP[4])
        assert before.isdisjoint(p["id"] for p in on(group)), "the program is the successor's"
        assert len(on(left)) == 2
        successor.sweep()
        assert (len(on(group)), on(left)) == (2, [])
        counter.close()
        assert on(group) == []


def test_a_killed_daemons_pins_go_if_nobody_counts_any_more(all_applications, group, pin_dir):
    all_applications.open().read(group.paths[UNIFIED])
    kill(all_applications)
    Applications(str(pin_dir)).sweep()
    assert on(group) == []
    assert not (pin_dir / "applications").exists()


def test_cleaning_up_twice(all_applications, group, pin_dir):
    all_applications.open().read(group.paths[UNIFIED])
    kill(all_applications)
    for _ in range(2):
        applications.remove(str(pin_dir))
        assert on(group) == []
        assert not (pin_dir / "applications").exists()


def test_a_cgroup_that_ended_without_a_daemon(all_applications, group, pin_dir):
    all_applications.open().read(group.paths[UNIFIED])
    kill(all_applications)
    group.paths[UNIFIED].rmdir()
    group.paths[UNIFIED].mkdir()
    successor = Applications(str(pin_dir))
    counter = successor.open()
    number, *totals = counter.read(group.paths[UNIFIED])
    assert totals == [0, 0]
    successor.sweep()
    assert pinned(pin_dir) == ["bytes", f"link-{number}-egress", f"link-{number}-ingress"]
    counter.close()


def test_what_somebody_takes_off_or_removes_is_put_back(all_applications, group, pin_dir):
    counter = all_applications.open()
    number, *_ = counter.read(group.paths[UNIFIED])
    fd = pins.get(str(pin_dir / "applications" / f"link-{number}-egress"))
    bpfprog.link_detach(fd)
    os.close(fd)
    assert len(on(group)) == 1
    assert counter.read(group.paths[UNIFIED]) == (number, 0, 0)
    assert len(on(group)) == len(TYPES)
    subprocess.run(["rm", "-rf", pin_dir], check=True)
    assert counter.read(group.paths[UNIFIED]) == (number, 0, 0)
    assert len(on(group)) == len(TYPES)
    counter.close()


def test_a_program_above_that_allows_no_other_is_named(all_applications, group, tmp_path):
    object_file = str(applications.OBJECT)
    with Group("below", group) as below, bpffs(tmp_path / "theirs") as theirs:
        subprocess.run(["bpftool", "prog", "load", object_file, theirs / "one", "type", "cgroup/skb"], check=True)
        attach = ["bpftool", "cgroup", "attach", group.paths[UNIFIED], "ingress", "pinned", theirs / "one"]
        subprocess.run(attach, check=True)
        counter = all_applications.open()
        with pytest.raises(HostError, match=r"attaching to cgroup .*: Operation not permitted; .*bpftool cgroup tree"):
            counter.read(below.paths[UNIFIED])
        counter.close()


def test_a_place_without_a_bpf_file_system(group, tmp_path):
    counter = Applications(str(tmp_path)).open()
    with pytest.raises(HostError, match=f"datapath.pin_dir {tmp_path}: not on a BPF file system"):
        counter.read(group.paths[UNIFIED])
    counter.close()
