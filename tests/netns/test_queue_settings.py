"""The queue's settings: a batch at a time, fail-open, and what a refusal says (test_nfqueue.py: whole packets).

a ---- b      the queue is at b, PREROUTING
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time

import pytest
from hosts import environment
from topology import Topology

from scentd.datapath.queue import nfqueue
from scentd.datapath.queue.nfqueue import Queue
from scentd.errors import HostError

pytestmark = pytest.mark.netns

NUMBER = 4711
UDP_SEGMENT = 103


@pytest.fixture
def ends():
    """A host and two sockets: what one sends to the other goes through the queue."""
    with Topology("nq") as net:
        a, b = net.host("a"), net.host("b")
        net.link(a, b, ipv4="10.1.0.0/24", mtu=9000)
        b.run("iptables", "-t", "mangle", "-A", "PREROUTING", "-p", "udp", "-j", "NFQUEUE", "--queue-num", str(NUMBER))
        sender, receiver = (h.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) for h in (a, b))
        with sender, receiver:
            receiver.bind((b.ipv4, 0))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
            sender.connect(receiver.getsockname())
            receiver.settimeout(2)
            yield b, sender, receiver


def open_queue(host, callback, length=1024, overload_open=False, unsegmented=False) -> Queue:
    queue = host.call(Queue, NUMBER, callback, length, None, unsegmented)
    queue.set_overload(overload_open)
    return queue


def wait(queue: Queue) -> None:
    assert select.select([queue], [], [], 2)[0], "nothing in the queue"


def test_a_changed_packet_is_what_arrives(ends):
    host, sender, receiver = ends

    def change(packet) -> None:
        payload = packet.get_payload()
        packet.set_payload(payload[:26] + b"\0\0" + payload[28:-3] + b"new")  # no UDP checksum
        packet.accept()

    queue = open_queue(host, change)
    try:
        sender.send(b"the old")
        wait(queue)
        queue.run()
        assert receiver.recv(100) == b"the new"
    finally:
        queue.close()


def test_a_run_ends_though_packets_keep_coming(ends, monkeypatch):
    """A flood must not keep a worker from its clock and its messages: each packet sends the next one here."""
    host, sender, _ = ends
    count = 0

    def take(packet) -> None:
        nonlocal count
        count += 1
        packet.accept()
        if count < 10 * nfqueue._BATCH:
            sender.send(b"next")

    queue = open_queue(host, take)
    try:
        sender.send(b"first")
        wait(queue)
        queue.run()
        assert count <= nfqueue._BATCH
        wait(queue)
        queue.run()
        assert count > nfqueue._BATCH // 2
    finally:
        queue.close()


@pytest.mark.parametrize("overload_open", [True, False])
@pytest.mark.parametrize("unsegmented", [True, False])
def test_packets_of_several_segments(ends, unsegmented, overload_open):
    """Whole to the queue that asks for it, cut to any other; each socket gets the same datagrams of both."""
    host, sender, receiver = ends
    sizes = []

    def take(packet) -> None:
        sizes.append(len(packet.get_payload()))
        packet.accept()

    queue = open_queue(host, take, 1024, overload_open, unsegmented)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    try:
        for number in (1, 3, 60):
            sender.send(bytes(1000 * number))
            sizes.clear()
            while sum(sizes) < 1000 * number:
                wait(queue)
                queue.run()
            assert sizes == ([28 + 1000 * number] if unsegmented else [1028] * number)
            assert [len(receiver.recv(2000)) for _ in range(number)] == [1000] * number
    finally:
        queue.close()


def test_an_unsegmented_queue_stays_wide(ends, monkeypatch):
    monkeypatch.setattr(nfqueue, "_WIDE_RUNS", 3)
    host, sender, receiver = ends
    queue = open_queue(host, lambda packet: packet.accept(), unsegmented=True)
    try:
        for size in (100, 100, 100, 100, 100, 8000):
            sender.send(bytes(size))
            wait(queue)
            queue.run()
            assert len(receiver.recv(9000)) == size
        assert queue._wide
        assert queue.refused_settings == 0
    finally:
        queue.close()


@pytest.mark.parametrize("overload_open", [True, False])
@pytest.mark.parametrize("unsegmented", [True, False])
def test_a_full_queue(ends, overload_open, unsegmented):
    """What does not fit is let through, or not."""
    host, sender, receiver = ends
    queue = open_queue(host, lambda packet: packet.accept(), 64, overload_open, unsegmented)
    try:
        for n in range(100):
            sender.send(b"%d" % n)
        receiver.settimeout(0.3)
        arrived = 0
        while True:
            try:
                receiver.recv(100)
                arrived += 1
            except TimeoutError:
                break
        assert (arrived >= 30) == overload_open, arrived
        queue.run()  # the packets that did fit still have their verdict to come
        receiver.recv(100)
    finally:
        queue.close()


def test_a_number_that_is_taken(ends):
    host, _, _ = ends
    code = (
        "import sys, time\nfrom scentd.datapath.queue.nfqueue import Queue\n"
        f"q = Queue({NUMBER}, lambda p: p.accept(), 64)\nprint('bound', flush=True)\ntime.sleep(20)"
    )
    other = host.start(sys.executable, "-c", code, env=environment(), stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "bound\n"
    with pytest.raises(HostError, match=f"cannot bind NFQUEUE {NUMBER}.*another program.*datapath.queue"):
        open_queue(host, lambda packet: packet.accept())
    other.kill()
    other.wait()
    end = time.monotonic() + 5
    while True:
        try:
            open_queue(host, lambda packet: packet.accept()).close()
            break
        except HostError:
            assert time.monotonic() < end, "free again when the other has gone"
            time.sleep(0.05)
