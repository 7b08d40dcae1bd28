"""Programs on real interfaces, as tcx links and as clsact filters.

a ---- 10.1.0.0/24 ---- b      the programs count echo requests: those that leave a, those that reach b
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from attaching import BOTH, MECHANISMS, Lab
from hosts import ROOT, environment
from pyroute2 import IPRoute
from topology import Host

from scentd.datapath.offload import attach, bpfprog, clsact, pins, tcx
from scentd.datapath.offload.attach import Attacher
from scentd.datapath.offload.libbpf import BpfError
from scentd.errors import HostError

pytestmark = pytest.mark.netns


def has_clsact(host: Host) -> bool:
    return "clsact" in host.out("tc", "qdisc", "show", "dev", host.interfaces[0])


@BOTH
def test_attach_replace_detach(lab, mechanism):
    attacher = Attacher(lab.directory, mechanism)
    assert lab.counted() == [0, 0, 0, 0]
    assert lab.attach(attacher, "one") == mechanism
    assert lab.attach(attacher, "one", lab.a, "egress") == mechanism
    assert lab.counted() == [6, 0, 0, 0]
    lab.attach(attacher, "two")
    assert lab.counted() == [3, 3, 0, 0]
    assert lab.b.call(attacher.attached_sides) == {(lab.index, "ingress")}
    assert lab.a.call(attacher.attached_sides) == {(lab.index_of(lab.a), "egress")}
    for host in (lab.a, lab.b):
        assert has_clsact(host) is (mechanism == "clsact")
    lab.b.call(attacher.detach, lab.index, "egress")  # nothing is there
    assert lab.counted() == [3, 3, 0, 0]
    for host, direction in ((lab.a, "egress"), (lab.b, "ingress")):
        for _ in range(2):
            host.call(attacher.detach, lab.index_of(host), direction)
        assert host.call(attacher.attached_sides) == set()
        assert not has_clsact(host)
    assert lab.counted() == [0, 0, 0, 0]
    assert os.listdir(lab.directory) == []


def test_links_are_taken_where_there_are_links(lab):
    assert lab.attach(Attacher(lab.directory), "one") == "tcx"


@BOTH
def test_no_packet_is_missed_while_programs_are_replaced(lab, mechanism):
    packets = 20000
    attacher = Attacher(lab.directory, mechanism)
    lab.attach(attacher, "one")
    lab.counted(1)
    lab.reset()
    flood = lab.a.start("ping", "-f", "-q", "-c", str(packets), lab.b.ipv4, stdout=subprocess.PIPE, text=True)

    def replace() -> int:
        turns = 0
        while flood.poll() is None:
            for name in ("two", "one"):
                attacher.attach(lab.index, "ingress", lab.programs[name])
            turns += 1
        return turns

    assert lab.b.call(replace) > 1
    sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", flood.stdout.read()))
    one, two, *_ = lab.read()
    assert (sent, received, one + two) == (packets, packets, packets)
    assert one > 0
    assert two > 0


# -- others --------------------------------------------------------------------


def test_links_of_others_run_before_and_after_ours(lab):
    others = []
    attacher = Attacher(lab.directory, "tcx")

    def other(name: str, flags: int) -> None:
        others.append(bpfprog.link_create(lab.programs[name], lab.index, tcx.TYPES["ingress"], flags))

    try:
        lab.b.call(other, "ending", 0)
        lab.attach(attacher, "one")  # in front of the one that ends the chain
        lab.b.call(other, "passing", tcx.BEFORE)
        assert lab.counted() == [3, 0, 3, 3]
        lab.attach(attacher, "two")
        assert lab.counted() == [0, 3, 3, 3]
        lab.b.call(attacher.detach, lab.index, "ingress")
        assert lab.counted() == [0, 0, 3, 3]
        lab.attach(attacher, "one")
        lab.b.call(attacher.remove)
        assert lab.counted() == [0, 0, 3, 3]
    finally:
        for link in others:
            os.close(link)


def other_filter(lab: Lab, name: str, priority: int, handle: int = 1, title: str = "other") -> None:
    def make() -> None:
        with IPRoute() as ip:
            ip.tc(
                *("add-filter", "bpf", lab.index),
                handle=handle,
                parent=clsact.PARENTS["ingress"],
                prio=priority,
                fd=lab.programs[name],
                name=title,
                direct_action=True,
            )

    lab.b.call(make)


@BOTH
def test_filters_of_others_run_before_and_after_ours(lab, mechanism):
    attacher = Attacher(lab.directory, mechanism)
    lab.b.run("tc", "qdisc", "add", "dev", lab.b.interfaces[0], "clsact")
    other_filter(lab, "passing", 1)
    other_filter(lab, "ending", 50000, title=clsact.NAME)  # the name alone does not make it ours
    lab.attach(attacher, "one")
    assert lab.counted() == [3, 0, 3, 3]
    lab.attach(attacher, "two")
    assert lab.counted() == [0, 3, 3, 3]
    lab.b.call(attacher.detach, lab.index, "ingress")
    assert lab.counted() == [0, 0, 3, 3]
    assert lab.b.call(attacher.attached_sides) == set()
    lab.attach(attacher, "one")
    lab.b.call(attacher.remove)
    assert lab.counted() == [0, 0, 3, 3]


def test_an_empty_clsact_of_others_stays_where_ours_never_was(lab):
    lab.b.run("tc", "qdisc", "add", "dev", lab.b.interfaces[0], "clsact")
    attacher = Attacher(lab.directory)
    lab.attach(attacher, "one")
    lab.b.call(attacher.detach, lab.index, "ingress")
    lab.b.call(attacher.remove)
    assert has_clsact(lab.b)


@pytest.mark.parametrize(("handle", "name"), [(1, "other"), (2, clsact.NAME)])
def test_our_priority_in_other_hands_is_refused_and_left_alone(lab, handle, name):
    attacher = Attacher(lab.directory, "clsact")
    lab.b.run("tc", "qdisc", "add", "dev", lab.b.interfaces[0], "clsact")
    other_filter(lab, "passing", clsact.PRIORITY, handle, name)
    with pytest.raises(HostError, match=f"priority {clsact.PRIORITY}"):
        lab.attach(attacher, "one")
    lab.b.call(attacher.detach, lab.index, "ingress")
    lab.b.call(attacher.remove)
    assert lab.b.call(attacher.attached_sides) == set()
    assert lab.counted() == [0, 0, 3, 0]


def test_an_ingress_qdisc_has_room_for_one_side(lab):
    attacher = Attacher(lab.directory, "clsact")
    lab.b.run("tc", "qdisc", "add", "dev", lab.b.interfaces[0], "ingress")
    lab.attach(attacher, "one")
    with pytest.raises(HostError, match="ingress qdisc"):
        lab.attach(attacher, "two", direction="egress")
    lab.b.call(attacher.detach, lab.index, "egress")
    assert lab.b.call(attacher.attached_sides) == {(lab.index, "ingress")}
    assert lab.counted() == [3, 0, 0, 0]
    lab.b.call(attacher.detach, lab.index, "ingress")
    assert lab.counted() == [0, 0, 0, 0]
    assert "ingress" in lab.b.out("tc", "qdisc", "show", "dev", lab.b.interfaces[0])


# -- many at once ------------------------------------------------------------------


def test_links_for_some_and_filters_for_the_others(lab):
    """Who has a link keeps it; where a filter cannot be, a link comes; who is gone is left out."""
    names = [f"more{n}" for n in range(5)]
    lab.b.ip(*(f"link add {name} type veth peer name far{name}" for name in names))
    plain, qdisc, foreign, chosen, gone = (lab.b.call(socket.if_nametoindex, name) for name in names)
    lab.b.run("tc", "qdisc", "add", "dev", "more1", "ingress")
    lab.b.run("tc", "qdisc", "add", "dev", "more2", "clsact")
    lab.b.ip("link del more4")
    attacher = Attacher(lab.directory)
    other = lab.index
    lab.index = foreign
    other_filter(lab, "passing", clsact.PRIORITY)
    lab.index = other
    lab.attach(attacher, "one")
    sides = [(i, d) for i in (lab.index, plain, qdisc, foreign, chosen, gone) for d in ("ingress", "egress")]
    for name in ("one", "two"):
        fds = dict.fromkeys(sides, lab.programs[name])
        attached = lab.b.call(attacher.attach_all, fds, [chosen])
        assert {side for side, by in attached.items() if by == "tcx"} == {
            *((lab.index, "ingress"), (qdisc, "egress"), (foreign, "ingress")),
            *((chosen, "ingress"), (chosen, "egress")),
        }
        assert attached.keys() == set(sides) - {(gone, "ingress"), (gone, "egress")}
        assert lab.b.call(Attacher(lab.directory).attached) == attached
    assert lab.counted() == [0, 3, 0, 0]
    both = dict.fromkeys([(plain, "ingress"), (plain, "egress")], lab.programs["one"])
    assert lab.b.call(attacher.attach_all, both, [plain]) == dict.fromkeys(both, "tcx")
    assert not lab.b.call(clsact.attached_sides) & both.keys()
    assert "clsact" in lab.b.out("tc", "qdisc", "show", "dev", "more0"), "its removal would lose packets"
    lab.b.call(attacher.remove)
    assert lab.b.call(attacher.attached) == {}
    assert lab.b.out("tc", "qdisc", "show").count("clsact") == 1, "somebody else's filter is in it"


# -- interfaces that go, other namespaces --------------------------------------


@BOTH
def test_an_interface_that_is_gone_and_one_that_gets_its_index(lab, mechanism):
    attacher = Attacher(lab.directory, mechanism)
    lab.attach(attacher, "one")
    lab.b.ip(f"link del {lab.b.interfaces[0]}")
    assert lab.b.call(attacher.attached_sides) == set()
    with pytest.raises(attach.NoInterface):
        lab.b.call(attacher.attach, lab.index, "egress", lab.programs["one"])
    lab.b.ip(f"link add again index {lab.index} type veth peer name over netns {lab.a.namespace}", "link set again up")
    lab.a.ip("link set over up", "addr add 10.1.0.1/24 dev over")
    lab.b.ip("addr add 10.1.0.2/24 dev again")
    lab.b.interfaces[0] = "again"
    assert lab.counted() == [0, 0, 0, 0]
    lab.attach(attacher, "two")
    assert lab.counted() == [0, 3, 0, 0]
    lab.b.ip("link del again")
    lab.b.call(attacher.detach, lab.index, "ingress")
    assert os.listdir(lab.directory) == []


def test_a_link_in_another_namespace_is_left_alone(lab):
    assert lab.index_of(lab.a) == lab.index  # both are the first of their namespace
    attacher = Attacher(lab.directory, "tcx")
    lab.attach(attacher, "one")
    assert lab.a.call(attacher.attached_sides) == set()
    with pytest.raises(HostError, match=r"datapath\.pin_dir"):
        lab.attach(attacher, "two", lab.a)
    lab.a.call(attacher.detach, lab.index, "ingress")
    assert lab.counted() == [3, 0, 0, 0]


# -- the process, the mechanism ------------------------------------------------

KILLED = """
import os, signal, sys
from scentd.datapath.offload.attach import Attacher
from scentd.datapath.offload.libbpf import Object
_, path, directory, mechanism, ifindex = sys.argv
it = Object(path)
it.load()
Attacher(directory, mechanism).attach(int(ifindex), "ingress", it.program_fd("ending"))
print(it.map_fd("counts"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@BOTH
def test_what_a_killed_process_leaves_is_found_taken_over_and_removed(lab, objects, mechanism):
    enter = ["nsenter", f"--net=/run/netns/{lab.b.namespace}"]  # `ip netns exec` would hide the mounts below /sys
    argv = [*enter, sys.executable, "-c", KILLED, objects.path, lab.directory, mechanism, str(lab.index)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, env=environment())
    assert done.returncode == -signal.SIGKILL, done.stderr
    attacher = Attacher(lab.directory, mechanism)
    assert lab.b.call(attacher.attached_sides) == {(lab.index, "ingress")}
    lab.attach(attacher, "one")
    assert lab.counted() == [3, 0, 0, 0]
    for _ in range(2):
        lab.b.call(Attacher(lab.directory).remove)
    assert lab.counted() == [0, 0, 0, 0]
    assert lab.b.call(attacher.attached_sides) == set()
    assert os.listdir(lab.directory) == []
    assert not has_clsact(lab.b)


@pytest.mark.parametrize("cleanup", ["attach", "detach", "remove"])
def test_a_process_killed_in_the_middle_of_pinning(lab, cleanup):
    attacher = Attacher(lab.directory, "tcx")
    lab.attach(attacher, "one")
    path = os.path.join(lab.directory, f"link-{lab.index}-ingress")
    os.rename(path, path + pins.NEW)
    assert lab.counted() == [3, 0, 0, 0]
    if cleanup == "attach":
        lab.attach(attacher, "two")
        lab.b.call(attacher.detach, lab.index, "ingress")
    elif cleanup == "detach":
        lab.b.call(attacher.detach, lab.index, "ingress")
    else:
        lab.b.call(attacher.remove)
    assert lab.counted() == [0, 0, 0, 0]
    assert os.listdir(lab.directory) == []


@pytest.mark.parametrize(("before", "after"), [MECHANISMS, MECHANISMS[::-1]])
def test_the_mechanism_may_change(lab, before, after):
    lab.attach(Attacher(lab.directory, before), "one")
    lab.attach(Attacher(lab.directory, after), "two")
    assert lab.counted() == [0, 3, 0, 0]


def test_a_kernel_without_links_is_asked_once(lab, monkeypatch):
    asked = []

    def refuse(*arguments: int) -> int:
        asked.append(arguments)
        raise BpfError(22, "attaching")

    monkeypatch.setattr(bpfprog, "link_create", refuse)
    attacher = Attacher(lab.directory)
    assert lab.attach(attacher, "one") == "clsact"
    assert lab.attach(attacher, "two") == "clsact"
    assert len(asked) == 1
    assert lab.counted() == [0, 3, 0, 0]
    with pytest.raises(BpfError):
        lab.attach(Attacher(lab.directory, "tcx"), "one")


def test_no_bpf_file_system(lab, tmp_path):
    with pytest.raises(HostError, match=r"datapath\.pin_dir"):
        lab.attach(Attacher(str(tmp_path)), "one")
    assert lab.b.call(Attacher(str(tmp_path / "absent")).attached_sides) == set()
    assert lab.counted() == [0, 0, 0, 0]


# -- interfaces ----------------------------------------------------------------


@BOTH
def test_a_bridges_port_has_two_programs_where_packets_leave(lab, mechanism):
    """Each is replaced, seen and detached for itself."""
    attacher, index = Attacher(lab.directory, mechanism), lab.index_of(lab.a)
    lab.attach(attacher, "one", lab.a, "egress")
    lab.attach(attacher, "passing", lab.a, "bridged")
    assert lab.counted() == [3, 0, 3, 0]
    lab.attach(attacher, "two", lab.a, "egress")
    assert lab.counted() == [0, 3, 3, 0]
    assert lab.a.call(attacher.attached_sides) == {(index, "egress"), (index, "bridged")}
    lab.a.call(attacher.detach, index, "bridged")
    assert lab.counted() == [0, 3, 0, 0]
    lab.a.call(attacher.remove)
    assert lab.a.call(attacher.attached_sides) == set()
