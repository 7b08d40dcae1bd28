"""A worker: one process with one stamping queue and two verifying ones, the second for long IPv6 packets.

Started by the daemon as `python -m scentd.datapath.queue.worker FD`; FD is its end of the
link. It holds no private key. When the link closes, it ends.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scentd.core import lowered_mtu
from scentd.core.packet.partial_checksum import finish
from scentd.core.packet.stamp import Stamper
from scentd.core.packet.verify import Outcome, Verifier
from scentd.datapath.queue import icmp, link
from scentd.datapath.queue.nfqueue import Queue
from scentd.errors import HostError
from scentd.state.epochs import Epochs
from scentd.wire import ip, layout
from scentd.wire.carrier import CARRIERS, NATIVE

log = logging.getLogger("scentd.worker")

STAMPED, ACCEPTED = 0, 1
HOOK_FORWARD = 2  # NF_INET_FORWARD
REPORT_SECONDS = 1.0
# Only a packet that may be longer than the lowered route allows must be routed again past it: the mark costs the
# kernel 1 us. No route is lowered below lowered_mtu.LOWEST_MTU, and stamp.LEARNED_MTU_MIN is the least that is learned.
MARK_ABOVE = lowered_mtu.LOWEST_MTU[4] - CARRIERS[NATIVE[4]].overhead


class Worker:
    def __init__(self, setup: link.WorkerSetup, end: socket.socket, reader: link.MessageReader) -> None:
        """`reader` is the one that `setup` came through: it may hold the start of what follows."""
        self._setup = setup
        self._end = end
        self._reader = reader
        self._unsent = bytearray()
        self._epochs: Epochs | None = None
        self._stamper = Stamper()
        self._verifier = Verifier([0, 0], self._stamper.unquote)
        self._icmp = icmp.IcmpSender()
        self._now = time.time()
        self._passed = [0, 0]  # packets STAMPED and ACCEPTED
        self._forward_lowered = False
        self._unstamped = [0] * len(layout.UNSTAMPED)
        self._outcomes: Counter[tuple[int, str]] = Counter()
        self._other: Counter[str] = Counter()
        length, fail_open = setup.queue_length, setup.verify_fail_open
        self._queues = [
            Queue(setup.stamp_queue, self._outbound(), length, setup.stamp_fail_open, self._pass_uncopyable),
            Queue(setup.verify_queue, self._inbound(), length, fail_open, self._settle_uncopyable),
        ]
        if setup.long_queue is not None:
            long = Queue(setup.long_queue, self._inbound(finish), length, fail_open, self._settle_uncopyable, True)
            self._queues.append(long)

    def run(self) -> None:
        """Serve packets and messages until the daemon closes the link."""
        poll = select.poll()
        handlers = {queue.fileno(): queue.run for queue in self._queues}
        for fd in (*handlers, self._end.fileno()):
            poll.register(fd, select.POLLIN)
        self._send(link.Ready())
        report_at = time.monotonic() + REPORT_SECONDS
        while True:
            ready = poll.poll(200)
            self._now = time.time()
            self._stamper.tick(self._now)
            self._verifier.tick(self._now)
            for fd, _ in ready:
                if fd in handlers:
                    handlers[fd]()
                elif not self._read():
                    return
            if self._verifier.events:
                self._send(link.Fragments(tuple(self._verifier.events)))
                self._verifier.events.clear()
            if time.monotonic() >= report_at:
                report_at = time.monotonic() + REPORT_SECONDS
                self._send(self._report())

    def close(self) -> None:
        for queue in self._queues:
            queue.close()
        self._icmp.close()

    # -- packets ---------------------------------------------------------

    def _outbound(self) -> Callable[[Any], None]:
        """What stamps one packet of the queue. A closure, because attribute lookups are a tenth of its cost."""
        stamp, passed, mark, mark_above = self._stamper.stamp, self._passed, self._setup.mark_stamped, MARK_ABOVE

        def handle(packet: Any) -> None:
            try:
                made = stamp(packet.get_payload())
                if isinstance(made, bytes):
                    if len(made) > mark_above:
                        if packet.hook == HOOK_FORWARD and self._outgrows_route(made):
                            self._leave(packet, layout.UNSTAMPED_TOO_BIG)
                            return
                        packet.set_mark(packet.mark | mark)
                    packet.set_payload(made)
                    packet.accept()
                    passed[STAMPED] += 1
                else:
                    self._leave(packet, made)
            except Exception:
                self._defect(packet, self._setup.stamp_fail_open)

        return handle

    def _inbound(self, finish: Callable[[bytes], bytes | None] | None = None) -> Callable[[Any], None]:
        """What verifies one packet of the queue. `finish` gets what is accepted, where checksums may be unfinished.

        If finish() returns None, the packet keeps its scent: the receiver's stack skips the option.
        """
        verify, passed, glance = self._verifier.verify, self._passed, self._setup.mark_glance

        def handle(packet: Any) -> None:
            try:
                payload = packet.get_payload()
                result = verify(payload)
                if isinstance(result, bytes):
                    if glance:
                        packet.set_mark(packet.mark & ~glance | self._verifier.glance(payload) * (glance & -glance))
                    bare = finish(result) if finish else result
                    if bare is not None:
                        packet.set_payload(bare)
                    packet.accept()
                    passed[ACCEPTED] += 1
                else:
                    self._settle(packet, result)
            except Exception:
                self._defect(packet, self._setup.verify_fail_open)

        return handle

    def _outgrows_route(self, made: bytes) -> bool:
        """Forwarded packets are not routed again past the lowered MTU: the kernel would drop what exceeds it."""
        parsed = ip.parse(made)
        return self._forward_lowered and len(made) > self._stamper.unscented_limit(parsed)

    def _leave(self, packet: Any, reason: int) -> None:
        """A packet that goes out unstamped."""
        self._unstamped[reason] += 1
        if packet.hook == HOOK_FORWARD:
            self._forwarded_unstamped(packet.get_payload(), reason)
        packet.accept()

    def _settle(self, packet, outcome: Outcome) -> None:
        treatment = outcome.treatment
        self._outcomes[outcome.verdict, treatment] += 1
        if treatment == "drop":
            packet.drop()
            return
        if treatment == "reject":
            packet.set_mark(packet.mark | self._setup.mark_rejected)
        packet.accept()

    def _forwarded_unstamped(self, payload: bytes, reason: int) -> None:
        """Tell the source of a forwarded packet that does not fit how much would. It still goes out as it is."""
        if reason not in (layout.UNSTAMPED_TOO_BIG, layout.UNSTAMPED_IPV6_FRAGMENT):
            return
        parsed = ip.parse(payload)
        mtu = self._stamper.unscented_limit(parsed)
        if len(payload) > mtu and icmp.may_answer(payload, parsed) and self._icmp.send(payload, mtu, self._now):
            self._other["icmp_too_big_sent"] += 1

    def _pass_uncopyable(self, packet) -> None:
        """Too long for the kernel to copy is too long to grow: it leaves as it is, like all that does not fit."""
        self._other["uncopyable"] += 1
        packet.accept()

    def _settle_uncopyable(self, packet) -> None:
        """Not seen whole is not verified, and must not be a way past the verifier."""
        self._other["uncopyable"] += 1
        packet.drop()

    def _defect(self, packet, fail_open: bool) -> None:
        """A defect of ours must not leave a packet without a verdict. What the packet gets is the queue's `fail`."""
        self._other["internal_errors"] += 1
        if self._other["internal_errors"] <= 10:
            log.exception("internal error on the packet path; the packet is %s", "passed" if fail_open else "dropped")
        try:
            packet.accept() if fail_open else packet.drop()
        except RuntimeError:
            log.debug("the packet had its verdict already")

    # -- the link --------------------------------------------------------

    def _read(self) -> bool:
        try:
            data = self._end.recv(1 << 20)
        except BlockingIOError:
            return True
        except ConnectionResetError:  # the daemon was killed with messages of ours unread
            return False
        if not data:
            return False
        for message in self._reader.feed(data):
            self.handle(message)
        return True

    def handle(self, message: link.ToWorker) -> None:
        if isinstance(message, link.NewEpochs):
            self._stamper.update(message.outgoing)
        elif isinstance(message, link.PathTables):
            before, self._epochs = self._epochs, Epochs(Path(message.epochs_path))
            self._stamper.configure(message.stamp)
            self._verifier.configure(message.verify, self._epochs.values)
            self._forward_lowered = message.forward_lowered
            if before is not None:
                before.close()

    def _send(self, message: link.FromWorker) -> None:
        """Queue a message; what the daemon does not take in time is dropped whole and counted."""
        if len(self._unsent) > 1 << 22:
            self._other["link_overflow"] += 1
            return
        self._unsent += link.frame(message)
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent)]
        except BlockingIOError:
            pass  # the rest goes with the next message, in a second at most
        except (BrokenPipeError, ConnectionResetError):
            log.info("the daemon is gone")

    def _report(self) -> link.WorkerReport:
        counters = {
            "stamped": self._passed[STAMPED],
            "accepted": self._passed[ACCEPTED] - self._verifier.errors_rewritten,
            "icmp_unquoted": self._verifier.errors_rewritten,
            **self._other,
        }
        for reason, count in enumerate(self._unstamped):
            counters[f"unstamped:{layout.UNSTAMPED[reason]}"] = count
        for (verdict, treatment), count in self._outcomes.items():
            counters[f"{layout.VERDICTS[verdict]}:{treatment}"] = count
        return link.WorkerReport(counters, tuple(self._stamper.fragments_sent()), self._verifier.drain_nodes())


def main(argv: list[str]) -> int:
    logging.basicConfig(level=os.environ.get("SCENTD_LOG_LEVEL", "INFO"), format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon decides when to end
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end = socket.socket(fileno=int(argv[0]))
    reader = link.MessageReader(link.ToWorker)
    messages: list = []
    while not messages:
        data = end.recv(1 << 16)
        if not data:
            return 1
        messages = reader.feed(data)
    end.setblocking(False)
    try:
        worker = Worker(messages[0], end, reader)
        for message in messages[1:]:
            worker.handle(message)
    except (HostError, OSError) as error:
        end.send(link.frame(link.Failed(str(error))))
        return 1
    try:
        worker.run()
    finally:
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
