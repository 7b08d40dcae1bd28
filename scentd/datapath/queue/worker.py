"""A worker: one process with one stamping queue and two verifying ones, the second for long IPv6 packets.

The daemon starts it as `python -P -m scentd.datapath.queue.worker FD`; FD is the worker's end of the
link. The worker holds no private key. It ends when the link closes; the guard, if there is one, then holds its queues.
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
from scentd.core.packet import partial_checksum
from scentd.core.packet.stamp import Stamper
from scentd.core.packet.verify import BARRED, Outcome, Verifier
from scentd.datapath.answers import Answers
from scentd.datapath.queue import icmp, link
from scentd.datapath.queue.nfqueue import Queue
from scentd.errors import HostError
from scentd.guard.client import Holding
from scentd.guard.held import queue_states
from scentd.state.epochs import Epochs
from scentd.system import logs
from scentd.wire import ip, layout
from scentd.wire.carrier import CARRIERS
from scentd.wire.maps import NO_PAIR

log = logging.getLogger("scentd.worker")

STAMPED, ACCEPTED = 0, 1  # directions
VERIFIED = 0
OVERLOADED = ("overload_stamp", "overload_verify", "overload_verify")  # counters of the queues
HOOK_FORWARD = 2  # NF_INET_FORWARD
REPORT_SECONDS = 1.0
# The mark makes the kernel route a packet again, past the lowered route. That costs the kernel 1 us, so only a packet
# that may exceed a lowered MTU gets the mark. No route is lowered below lowered_mtu.LOWEST_MTU, and no learned MTU is
# less than stamp.LEARNED_MTU_MIN.
MARK_ABOVE = min(lowered_mtu.LOWEST_MTU[c.version] - c.overhead for c in CARRIERS.values())


class Worker:
    def __init__(self, setup: link.WorkerSetup, end: socket.socket, reader: link.MessageReader) -> None:
        """`reader` is the reader that returned `setup`; it may hold the start of the next message."""
        self._setup = setup
        self._end = end
        self._reader = reader
        self._send_buffer = bytearray()
        self._epochs: Epochs | None = None
        self._stamper = Stamper()
        self._verifier = Verifier([], self._stamper.unquote, self._stamper.make_room)
        self._icmp = icmp.IcmpSender()
        self._now = time.time()
        self._stamped = [0]  # packets
        self._have_origin = [False]  # whether a packet's network may depend on where it came from
        self._accepted = 0  # packets until the last report, beacons among them
        self._forward_lowered = False
        self._answers = Answers()
        self._unqueued = setup.mark_queued ^ 0xFFFFFFFF
        self._marks = [0, 0]  # VERIFIED: of all that comes in; then the bits of the glance
        self._fail_open = [False, False]  # by STAMPED and ACCEPTED
        self._counters: Counter[str] = Counter()
        self._of_pairs: Counter[tuple[int, str]] = Counter()  # packets since the last report
        length = setup.queue_length
        self._queues = [
            Queue(setup.stamp_queue, self._stamp_handler(), length, self._pass_uncopyable),
            Queue(setup.verify_queue, self._verify_handler(), length, self._drop_uncopyable),
        ]
        if setup.long_queue is not None:
            handler = self._verify_handler(partial_checksum.finish)
            self._queues.append(Queue(setup.long_queue, handler, length, self._drop_uncopyable, True))
        self._holding = Holding(setup.guard_socket)

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
        """End the queues, unless the guard holds them for the next worker."""
        if not self._holding.held:
            for queue in self._queues:
                queue.close()
        self._icmp.close()
        self._answers.close()

    # -- packets ---------------------------------------------------------

    def _stamp_handler(self) -> Callable[[Any], None]:
        """Return the function that stamps one packet. It is a closure: attribute lookups are a tenth of its cost."""
        stamp, stamped, mark, mark_above = self._stamper.stamp, self._stamped, self._setup.mark_stamped, MARK_ABOVE
        unqueued, have_origin, come_from = self._unqueued, self._have_origin, self._stamper.come_from

        def handle(packet: Any) -> None:
            try:
                if have_origin[0]:
                    come_from(packet.indev, packet.mark)
                result = stamp(packet.get_payload())
                if isinstance(result, bytes):
                    if len(result) > mark_above:
                        if packet.hook == HOOK_FORWARD and self._outgrows_route(result):
                            self._pass_unstamped(packet, layout.UNSTAMPED_TOO_BIG)
                            return
                        packet.set_mark(packet.mark & unqueued | mark)
                    packet.set_payload(result)
                    packet.accept()
                    stamped[0] += 1
                else:
                    self._pass_unstamped(packet, result)
            except Exception:
                self._fail(packet, STAMPED)

        return handle

    def _verify_handler(self, finish: Callable[[bytes], bytes | None] | None = None) -> Callable[[Any], None]:
        """Return the function that verifies one packet. `finish` completes the checksums of accepted ones.

        If finish() returns None, the packet keeps its scent: the receiver's stack skips the option.
        """
        verify, marks, unqueued = self._verifier.verify, self._marks, self._unqueued

        def handle(packet: Any) -> None:
            try:
                payload = packet.get_payload()
                result = verify(payload)
                if isinstance(result, bytes):
                    verified, glance = marks
                    mark = packet.mark & unqueued | verified
                    if glance:
                        mark = mark & ~glance | self._verifier.glance(payload) * (glance & -glance)
                    packet.set_mark(mark)
                    bare = finish(result) if finish else result
                    if bare is not None:
                        packet.set_payload(bare)
                    packet.accept()
                else:
                    self._treat(packet, result)
            except Exception:
                self._fail(packet, ACCEPTED)

        return handle

    def _outgrows_route(self, stamped: bytes) -> bool:
        """Whether the kernel would drop a forwarded packet: it does not route those again, past the lowered MTU."""
        parsed = ip.parse(stamped)
        return self._forward_lowered and len(stamped) > self._stamper.unscented_limit(parsed)

    def _pass_unstamped(self, packet: Any, reason: int) -> None:
        """Let a packet go out unstamped. The packets of its connection may get a scent all the same."""
        payload = packet.get_payload()
        parsed = ip.parse(payload)
        self._count(f"unstamped:{layout.UNSTAMPED[reason]}", self._stamper.pair_of(parsed))
        if packet.hook == HOOK_FORWARD:
            self._answer_too_big(payload, parsed, reason, packet.indev if self._stamper.is_by_origin else 0)
        roomy = self._stamper.make_room(payload, parsed)
        if roomy is not payload:
            packet.set_payload(roomy)
        packet.accept()

    def _treat(self, packet, outcome: Outcome) -> None:
        treatment = outcome.treatment
        if outcome.verdict == BARRED:
            self._count("queue_quarantined", outcome.pair)
        elif outcome.verdict != layout.VERDICT_ACCEPTED:
            self._count(f"{layout.VERDICTS[outcome.verdict]}:{treatment}", outcome.pair)
        else:
            self._counters["accepted:drop"] += 1  # a beacon
        if treatment == "pass":
            if outcome.lowered is not None:
                packet.set_payload(outcome.lowered)
            packet.set_mark(packet.mark & self._unqueued | self._marks[VERIFIED])
            packet.accept()
            return
        if treatment == "reject":
            payload = packet.get_payload()
            self._answers.send(payload, len(payload), packet.indev, self._now)
        packet.drop()

    def _count(self, outcome: str, pair: int) -> None:
        self._counters[outcome] += 1
        if pair != NO_PAIR:
            self._of_pairs[pair, outcome] += 1

    def _answer_too_big(self, payload: bytes, parsed: ip.Parsed, reason: int, interface: int) -> None:
        """Tell the source of a forwarded packet that does not fit which MTU does. The packet goes out unchanged."""
        if reason not in (layout.UNSTAMPED_TOO_BIG, layout.UNSTAMPED_IPV6_FRAGMENT):
            return
        mtu = self._stamper.unscented_limit(parsed)
        if (
            len(payload) > mtu
            and icmp.may_answer(payload, parsed)
            and self._icmp.send(payload, mtu, self._now, interface)
        ):
            self._counters["icmp_too_big_sent"] += 1

    def _pass_uncopyable(self, packet) -> None:
        """Let a packet go out unstamped: what the kernel cannot copy is also too long to grow by a scent."""
        self._counters["uncopyable"] += 1
        packet.accept()

    def _drop_uncopyable(self, packet) -> None:
        """Drop a packet that cannot be copied whole and so not be verified: it must not get past the verifier."""
        self._counters["uncopyable"] += 1
        packet.drop()

    def _fail(self, packet, direction: int) -> None:
        """Give a packet the verdict of the queue's `fail` after an exception: no packet may stay without a verdict."""
        fail_open = self._fail_open[direction]
        self._counters["internal_errors"] += 1
        if self._counters["internal_errors"] <= 10:
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
        except ConnectionResetError:  # the daemon was killed before it had read all messages
            return False
        if not data:
            return False
        for message in self._reader.feed(data):
            self.handle(message)
        return True

    def handle(self, message: link.ToWorker) -> None:
        if isinstance(message, link.NewEpochs):
            self._stamper.update(message.outgoing)
        elif isinstance(message, link.BarredFlows):
            self._verifier.bar(message.until)
        elif isinstance(message, link.PathTables):
            before, self._epochs = self._epochs, Epochs(Path(message.epochs_path))
            self._stamper.configure(message.stamp)
            self._have_origin[0] = self._stamper.has_origins
            self._verifier.configure(message.verify, self._epochs.values)
            self._forward_lowered = message.forward_lowered
            self._marks[:] = message.mark_verified, message.mark_glance
            self._fail_open[:] = message.stamp_fail_open, message.verify_fail_open
            logging.getLogger().setLevel(message.log_level.upper())
            self._settle(message)
            if before is not None:
                before.close()

    def _settle(self, tables: link.PathTables) -> None:
        """Tell kernel and guard what happens to packets that nobody handles. The first queue stamps."""
        overload, fail = (
            [stamp, *[verify] * (len(self._queues) - 1)]
            for stamp, verify in (
                (tables.stamp_overload_open, tables.verify_overload_open),
                (tables.stamp_fail_open, tables.verify_fail_open),
            )
        )
        for queue, is_open in zip(self._queues, overload, strict=True):
            try:
                queue.set_overload(is_open)
            except (HostError, OSError) as error:  # packets go on as before
                log.error("NFQUEUE %d: overload: %s", queue.number, error)
        self._holding.hold([(q.number, is_open, q.fileno()) for q, is_open in zip(self._queues, fail, strict=True)])

    def _send(self, message: link.FromWorker) -> None:
        """Queue a message. If the daemon reads too slowly, the message is dropped whole and counted."""
        if len(self._send_buffer) > 1 << 22:
            self._counters["link_overflow"] += 1
            return
        self._send_buffer += link.frame(message)
        try:
            while self._send_buffer:
                del self._send_buffer[: self._end.send(self._send_buffer)]
        except BlockingIOError:
            pass  # the rest goes with the next message, after at most a second
        except (BrokenPipeError, ConnectionResetError):
            log.info("the daemon is gone")

    def _report(self) -> link.WorkerReport:
        accepted = self._verifier.drain_accepted()
        self._accepted += sum(accepted.values())
        duplicates = self._verifier.drain_duplicates()
        self._counters["duplicate_issuer"] += sum(duplicates.values())
        counters = {
            "stamped": self._stamped[0],
            "accepted": self._accepted - self._counters["accepted:drop"],
            "icmp_unquoted": self._verifier.errors_rewritten,
            **self._counters,
        }
        of_pairs = [
            *((pair, "duplicate_issuer", n) for pair, n in duplicates.items()),
            *((pair, "accepted", n) for pair, n in accepted.items()),
            *((*k, n) for k, n in self._of_pairs.items()),
        ]
        self._of_pairs.clear()
        states = queue_states()
        for queue, name in zip(self._queues, OVERLOADED, strict=False):
            state = states.get(queue.number)
            counters[name] = counters.get(name, 0) + (state.refused if state is not None else 0)
        return link.WorkerReport(
            counters,
            tuple(of_pairs),
            self._verifier.drain_refused_epochs(),
            tuple(self._stamper.fragments_sent()),
            self._verifier.drain_nodes(),
            self._stamper.drain_learned(),
        )


def main(argv: list[str]) -> int:
    logs.setup(os.environ.get("SCENTD_LOG_LEVEL", "info"))
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
        end.send(link.frame(link.StartFailure(str(error))))
        return 1
    try:
        worker.run()
    finally:
        worker.close()
    logging.shutdown()
    os._exit(0)  # the destructors of netfilterqueue would unbind queues that the guard holds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
