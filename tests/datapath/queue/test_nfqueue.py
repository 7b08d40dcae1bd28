"""The queue hands over every packet whole, long ones too, whichever way it reads.

a ----- MTU 9000 ----- b
queues in mangle OUTPUT of a and mangle PREROUTING of b
"""

import errno
import select
import socket
import time
from contextlib import suppress

import pytest
from topology import Topology

from scentd.datapath.queue import link, nfqueue
from scentd.datapath.queue.nfqueue import NARROW, PACKET_MAX, Queue
from scentd.datapath.queue.worker import Worker

pytestmark = pytest.mark.netns

OUT, IN = 1, 2
PORT = 9000
LENGTH = 1024
HEADERS = {4: 28, 6: 48}
IPV6_HDRINCL = 36


class Bench:
    """Both queues, with what they were handed, and a receiver."""

    def __init__(self, net, monkeypatch):
        monkeypatch.setattr(nfqueue, "_BATCH", 16)
        self.a, self.b = net.host("a"), net.host("b")
        net.link(self.a, self.b, ipv4="10.1.0.0/24", ipv6="fd00:1::/64", mtu=9000)
        self.address = {4: self.b.ipv4, 6: self.b.ipv6}
        self.seen = {OUT: [], IN: []}
        self.queues = {}
        for host, number, rule in ((self.a, OUT, "OUTPUT"), (self.b, IN, "PREROUTING")):
            for program in ("iptables", "ip6tables"):
                # `! icmp`: neighbour discovery stays out of it.
                match = ["-p", "udp"] if program == "iptables" else ["!", "-p", "ipv6-icmp"]
                host.run(program, "-t", "mangle", "-A", rule, *match, "-j", "NFQUEUE", "--queue-num", str(number))
            self.queues[number] = host.call(Queue, number, self.taker(number), LENGTH, False)
        self.sockets = {}
        for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            receiver = self.b.call(socket.socket, kind, socket.SOCK_DGRAM)
            receiver.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            receiver.bind((self.address[family], PORT))
            receiver.setblocking(False)
            sender = self.a.call(socket.socket, kind, socket.SOCK_DGRAM)
            sender.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE: what waits in a queue counts
            self.sockets[family] = sender, receiver

    def taker(self, number):
        def take(packet):
            self.seen[number].append(packet.get_payload())
            packet.accept()

        return take

    def send(self, family, size):
        self.sockets[family][0].sendto(bytes([size % 251]) * size, (self.address[family], PORT))

    def serve(self, quiet=0.05):
        """Run the queues until nothing comes any more."""
        poll = select.poll()
        by_fd = {q.fileno(): q for q in self.queues.values()}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        end = time.monotonic() + 10
        while (ready := poll.poll(quiet * 1000)) and time.monotonic() < end:
            for fd, _ in ready:
                by_fd[fd].run()

    def received(self, family):
        """What has come through until nothing comes for 0.3 s: it may be on its way when no queue has it."""
        receiver, sizes, quiet = self.sockets[family][1], [], 0
        while quiet < 6:
            self.serve()
            quiet += 1
            with suppress(BlockingIOError):
                while True:
                    data = receiver.recv(70000)
                    assert data == bytes([len(data) % 251]) * len(data)
                    sizes.append(len(data))
                    quiet = 0
        return sizes

    def whole(self, number, family, size):
        return [p for p in self.seen[number] if len(p) == size + HEADERS[family] and not nfqueue.is_truncated(p)]

    def close(self):
        for queue in self.queues.values():
            queue.close()
        for pair in self.sockets.values():
            for one in pair:
                one.close()


@pytest.fixture
def bench(monkeypatch):
    with Topology("nq") as net:
        made = Bench(net, monkeypatch)
        yield made
        made.close()


@pytest.mark.parametrize("family", [4, 6])
def test_every_packet_comes_whole_and_once(bench, family):
    """Small, just short, just too long, jumbo; UDP of 60 kB leaves in fragments behind OUTPUT."""
    edge = NARROW - HEADERS[family]
    sizes = [100, edge - 1, edge, edge + 1, 100, 8000, 8900, 200, 60000]
    for size in sizes:
        bench.send(family, size)
        bench.serve()
    for size in sizes:
        assert len(bench.whole(OUT, family, size)) == sizes.count(size)
    assert bench.received(family) == sizes
    assert not any(map(nfqueue.is_truncated, bench.seen[OUT] + bench.seen[IN]))


@pytest.fixture
def timestamps():
    """A socket anywhere on the host that wants to know when packets came: then the kernel says so of every packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wants:
        wants.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
        time.sleep(0.1)  # the kernel takes it up a little later
        yield


@pytest.mark.parametrize("family", [4, 6])
def test_packets_with_a_timestamp_come_whole_too(bench, family, timestamps):
    """Twenty bytes more in each message. One that did not fit into the small buffer was lost without a verdict."""
    sizes = [edge - HEADERS[family] + more for edge in (NARROW, 4016, 4096) for more in (-1, 0, 1)]
    for size in sizes:
        bench.send(family, size)
        bench.serve()
    assert bench.received(family) == sizes
    waiting = [int(line.split()[2]) for line in bench.b.out("cat", "/proc/net/netfilter/nfnetlink_queue").splitlines()]
    assert waiting == [0]


def test_a_burst_that_waited_cut_off_comes_whole(bench):
    """All of it was copied for the small buffer before the first one could tell."""
    for _ in range(20):
        bench.send(4, 8000)
        bench.send(4, 100)
    bench.serve()
    assert sorted(bench.received(4)) == [100] * 20 + [8000] * 20


def test_it_turns_narrow_again_and_wide_again(bench, monkeypatch):
    monkeypatch.setattr(nfqueue, "_WIDE_RUNS", 5)
    for _ in range(2):
        bench.send(4, 8000)
        bench.serve()
        assert bench.queues[OUT]._wide
        for _ in range(8):
            bench.send(4, 100)
            bench.serve()
        assert not bench.queues[OUT]._wide
    assert bench.received(4) == ([8000] + [100] * 8) * 2


def test_narrow_is_not_read_before_long_packets_are(bench, monkeypatch):
    """Messages of the wide range that still wait do not fit into the small buffer."""
    monkeypatch.setattr(nfqueue, "_WIDE_RUNS", 1)
    bench.send(4, 8000)
    bench.serve()
    for size in [100] * 9 + [7000] * 3 + [100] * 9 + [7500] * 3:
        bench.send(4, size)
    bench.serve()
    assert sorted(bench.received(4)) == [100] * 18 + [7000] * 3 + [7500] * 3 + [8000]


def test_a_header_that_lies_is_not_sent_round_for_ever(bench):
    """A raw IPv6 socket may say any length; the packet is handed over as it is."""
    raw = bench.a.call(socket.socket, socket.AF_INET6, socket.SOCK_RAW, 253)
    raw.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
    source, destination = (socket.inet_pton(socket.AF_INET6, h.ipv6) for h in (bench.a, bench.b))
    lie = b"\x60\0\0\0" + (9000).to_bytes(2, "big") + b"\xfd\x40" + source + destination
    raw.sendto(lie + bytes(NARROW - 40), (bench.b.ipv6, 0))
    bench.serve()
    raw.close()
    assert [len(p) for p in bench.seen[OUT]] == [NARROW]
    assert bench.queues[OUT]._repeats == 0


def test_a_busy_queue_lets_go_after_a_batch(bench):
    """Its owner has another queue and the daemon's messages to serve."""
    for _ in range(60):
        bench.send(4, 100)
    queue = bench.queues[OUT]
    for handled in range(16, 60, 16):
        queue.run()
        assert len(bench.seen[OUT]) == handled
    queue.run()
    assert len(bench.seen[OUT]) == 60


class Refusing:
    """A queue's socket to which the kernel takes no more settings."""

    def __init__(self, real):
        self._real = real

    def send(self, _message):
        raise OSError(errno.ENOBUFS, "No buffer space available")

    def __getattr__(self, name):
        return getattr(self._real, name)


def test_a_refused_setting_is_not_the_end(bench, monkeypatch, caplog):
    """A long packet is handed over cut off, with a verdict; the next one asks again."""
    queue = bench.queues[OUT]
    real = queue._socket
    monkeypatch.setattr(queue, "_socket", Refusing(real))
    for size in (100, 8000, 100):
        bench.send(4, size)
    bench.serve()
    assert [len(p) for p in bench.seen[OUT]] == [128, NARROW, 128]
    assert queue.refused_settings == 1
    assert "cannot have 65531 bytes" in caplog.text
    monkeypatch.setattr(queue, "_socket", real)
    bench.send(4, 8000)
    bench.serve()
    assert len(bench.whole(OUT, 4, 8000)) == 1
    assert sorted(bench.received(4)) == [100, 100, 8000, 8000]


def test_a_queue_that_cannot_turn_narrow_stays_wide(bench, monkeypatch):
    """Long packets that the kernel still copies whole must not meet the small buffer."""
    monkeypatch.setattr(nfqueue, "_WIDE_RUNS", 3)
    queue = bench.queues[OUT]
    bench.send(4, 8000)
    bench.serve()
    real = queue._socket
    monkeypatch.setattr(queue, "_socket", Refusing(real))
    for size in [100] * 30 + [8000]:
        bench.send(4, size)
        bench.serve(quiet=0.005)
    assert queue.refused_settings > 1
    assert queue._wide
    assert len(bench.whole(OUT, 4, 8000)) == 2
    monkeypatch.setattr(queue, "_socket", real)
    for _ in range(8):
        bench.send(4, 100)
        bench.serve(quiet=0.005)
    assert not queue._wide
    bench.serve()
    assert bench.received(4) == [8000] + [100] * 30 + [8000] + [100] * 8


LONGEST = {4: 65507, 6: 65527}  # what UDP can say


@pytest.mark.parametrize("family", [4, 6])
def test_what_no_netlink_message_holds_is_handed_over_apart(bench, family):
    """One byte less than PACKET_MAX and PACKET_MAX are whole; above it the kernel always cuts."""
    apart = []

    def uncopyable(packet):
        apart.append(packet.get_payload_len())
        packet.accept()

    bench.queues[OUT].close()
    bench.queues[OUT] = bench.a.call(Queue, OUT, bench.taker(OUT), LENGTH, uncopyable)
    edge = PACKET_MAX - HEADERS[family]
    sizes = [100, LONGEST[family], edge + 1, edge, edge - 1, 100]
    for size in sizes:
        bench.send(family, size)
        bench.serve()
    assert apart == [PACKET_MAX] * 2
    assert [len(p) - HEADERS[family] for p in bench.seen[OUT] if not nfqueue.is_truncated(p)] == [
        100,
        edge,
        edge - 1,
        100,
    ]
    assert bench.received(family) == sizes


@pytest.mark.parametrize("direction", ["stamp", "verify", "verify long"])
def test_a_worker_settles_what_it_cannot_see_whole(bench, direction):
    """What leaves is too big for a scent and leaves as it is; what comes in is dropped. Both count."""
    bench.queues.pop(OUT).close()
    at = ["stamp", "verify", "verify long"].index(direction)
    stamp, verify, long = (OUT if number == at else 7 + number for number in range(3))
    setup = link.WorkerSetup(stamp, verify, LENGTH, 0x100, 0x200, long)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = bench.a.call(Worker, setup, ours, link.MessageReader(link.ToWorker))
        bench.queues[OUT] = worker._queues[at]
        try:
            bench.send(4, LONGEST[4])
            bench.serve()
            assert worker._report().counters["uncopyable"] == 1
            assert bench.received(4) == ([LONGEST[4]] if direction == "stamp" else [])
        finally:
            worker.close()
            bench.queues.pop(OUT)
