"""The daemon's side of its workers: start, feed, hear, restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable

from scentd.config.sections import Config
from scentd.core.closed import closed
from scentd.core.tables import StampTable, VerifyTable
from scentd.datapath.family import families
from scentd.datapath.queue import link
from scentd.errors import HostError
from scentd.guard import orders
from scentd.guard.client import GuardClient
from scentd.model import Outgoing
from scentd.system import python

log = logging.getLogger(__name__)

START_SECONDS = 20.0
SILENT_SECONDS = 10.0  # a worker that sends nothing for so long hangs: it is ended and started anew
BACKOFF_MAX = 30.0
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "VIRTUAL_ENV", "JOURNAL_STREAM")


class WorkerHandle:
    """One worker process and the daemon's end of its link."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.last_message_at = 0.0
        self.counters: Counter[str] = Counter()
        self.sent_fragments: dict[int, tuple[int, int]] = {}  # pair -> epoch, bits of the fragments sent

    def send(self, message: link.ToWorker) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(link.frame(message))


class Workers:
    """All workers. `on_message(message)` gets each Fragments and WorkerReport when it arrives."""

    def __init__(self, config: Config, log_level: str, on_message: Callable[[link.FromWorker], None]) -> None:
        self._config = config
        self._log_level = log_level
        self._on_message = on_message
        self._tables: link.PathTables | None = None
        self._outgoing: dict[int, Outgoing] = {}
        self._barred = link.BarredFlows({})
        self._ended_totals: Counter[str] = Counter()  # totals of workers that have ended
        self._workers = [WorkerHandle(i) for i in range(config.datapath.workers)]
        self._tasks: list[asyncio.Task] = []
        self._listeners: set[asyncio.Task] = set()
        self.restarts = 0
        self.first_queue = config.datapath.queue

    async def start(self, first_queue: int) -> None:
        """Start all workers and wait until their queues are bound, from `first_queue` on. Raises HostError."""
        self.first_queue = first_queue
        try:
            for worker in self._workers:
                await self._spawn(worker)
        except HostError:
            await self.stop()
            raise
        self._tasks = [asyncio.create_task(self._supervise(w)) for w in self._workers]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await self._stop_worker(worker)

    def publish_tables(self, tables: link.PathTables) -> None:
        self._tables = tables
        numbers = {p.pair for p in tables.stamp.pairs}
        self._outgoing = {n: o for n, o in self._outgoing.items() if n in numbers}
        for worker in self._workers:
            worker.send(tables)

    def publish_epochs(self, outgoing: dict[int, Outgoing]) -> None:
        """New epochs, by pair."""
        self._outgoing |= outgoing
        for worker in self._workers:
            worker.send(link.NewEpochs(outgoing))

    def bar(self, until: dict[int, dict[str, float]]) -> None:
        """Drop accepted packets of these pairs from these prefixes, each until a Unix time."""
        self._barred = link.BarredFlows(until)
        for worker in self._workers:
            worker.send(self._barred)

    def counters(self) -> Counter[str]:
        """Totals over all workers since the daemon's start."""
        return sum((w.counters for w in self._workers), Counter(self._ended_totals))

    def sent_bits(self, pair: int, epoch: int) -> int:
        """Bits of an epoch's fragments that any worker has sent."""
        bits = 0
        for worker in self._workers:
            at, fragments = worker.sent_fragments.get(pair, (0, 0))
            bits |= fragments if at == epoch else 0
        return bits

    def outgoing(self, pair: int) -> Outgoing | None:
        """The profile that workers send for a pair."""
        return self._outgoing.get(pair)

    def pids(self) -> list[int]:
        return [w.process.pid for w in self._workers if w.process is not None]

    def alive(self) -> bool:
        """Whether every worker has sent a message within SILENT_SECONDS."""
        return all(time.monotonic() - w.last_message_at < SILENT_SECONDS for w in self._workers)

    async def _spawn(self, worker: WorkerHandle) -> None:
        if worker.writer is not None:
            worker.writer.close()
        daemon_end, worker_end = link.pair()
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        environment["SCENTD_LOG_LEVEL"] = self._log_level.upper()
        with worker_end:
            worker.process = await asyncio.create_subprocess_exec(
                *python.command("scentd.datapath.queue.worker", str(worker_end.fileno())),
                pass_fds=(worker_end.fileno(),),
                env=python.environment(environment),
                cwd=python.DIRECTORY,
            )
        reader, worker.writer = await asyncio.open_connection(sock=daemon_end)
        worker.send(self._setup(worker.number))
        messages = link.MessageReader(link.FromWorker)
        try:
            first = await asyncio.wait_for(self._first_message(reader, messages), START_SECONDS)
        except TimeoutError:
            raise HostError(f"worker {worker.number} did not start within {START_SECONDS:.0f} s") from None
        if isinstance(first, link.StartFailure):
            raise HostError(first.error)
        if not isinstance(first, link.Ready):
            raise HostError(f"worker {worker.number} ended while starting; its messages are above")
        worker.last_message_at = time.monotonic()
        if self._tables is not None:
            worker.send(self._tables)
            worker.send(link.NewEpochs(self._outgoing))
            worker.send(self._barred)
        self._listen(worker, reader, messages)

    def _setup(self, number: int) -> link.WorkerSetup:
        datapath = self._config.datapath
        return link.WorkerSetup(
            stamp_queue=self.first_queue + number,
            verify_queue=self.first_queue + datapath.workers + number,
            queue_length=datapath.queue_length,
            guard_socket=os.path.abspath(self._config.guard.socket),
            mark_stamped=datapath.mark_stamped,
            mark_queued=datapath.mark_queued,
            long_queue=self.first_queue + 2 * datapath.workers + number if 6 in families() else None,
        )

    @staticmethod
    async def _first_message(reader: asyncio.StreamReader, messages: link.MessageReader) -> link.FromWorker | None:
        while data := await read_chunk(reader):
            for message in messages.feed(data):
                return message
        return None

    def _listen(self, worker: WorkerHandle, reader: asyncio.StreamReader, messages: link.MessageReader) -> None:
        async def listen() -> None:
            while data := await read_chunk(reader):
                for message in messages.feed(data):
                    worker.last_message_at = time.monotonic()
                    if isinstance(message, link.WorkerReport):
                        worker.counters = Counter(message.counters)
                        worker.sent_fragments = {pair: (epoch, bits) for pair, epoch, bits in message.sent}
                    try:
                        self._on_message(message)
                    except Exception:  # a message that cannot be used must not end the link
                        log.exception("worker %d: a message could not be used", worker.number)

        self._listeners = {t for t in self._listeners if not t.done()}
        self._listeners.add(asyncio.create_task(listen()))

    async def _supervise(self, worker: WorkerHandle) -> None:
        """Keep one worker running: start it anew when it ends or hangs, after a pause that doubles each time."""
        backoff = 0.1
        while worker.process is not None:
            try:
                await asyncio.wait_for(worker.process.wait(), 1.0)
            except TimeoutError:
                if time.monotonic() - worker.last_message_at < SILENT_SECONDS:
                    backoff = 0.1
                    continue
                log.error("worker %d (pid %d) hangs: ending it", worker.number, worker.process.pid)
                worker.process.kill()
                await worker.process.wait()
            log.error("worker %d ended (%s); starting it anew", worker.number, worker.process.returncode)
            self._ended_totals += worker.counters
            worker.counters = Counter()
            worker.sent_fragments = {}
            self.restarts += 1
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MAX)
            try:
                await asyncio.to_thread(self._give_up_queues, worker.number)
                await self._spawn(worker)
            except (HostError, OSError) as error:  # OSError: no process or descriptor is free now
                log.error("worker %d: %s", worker.number, error)

    def _give_up_queues(self, number: int) -> None:
        """Let the guard give up the queues of a worker that has ended: the next one binds them. Raises HostError."""
        guard = GuardClient(self._config.guard.socket)
        if guard.connect():
            setup = self._setup(number)
            mine = (setup.stamp_queue, setup.verify_queue, *([setup.long_queue] if setup.long_queue else []))
            guard.ask(orders.Release(mine, repeat=False))
            guard.close()

    async def _stop_worker(self, worker: WorkerHandle) -> None:
        if worker.writer is not None:
            worker.writer.close()
        if worker.process is None or worker.process.returncode is not None:
            return
        try:
            await asyncio.wait_for(worker.process.wait(), 3.0)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.wait()


def path_tables(
    config: Config, stamp: StampTable, verify: VerifyTable, epochs_path: str, forward_lowered: bool
) -> link.PathTables:
    """What workers work by under this configuration."""
    return link.PathTables(
        stamp,
        verify,
        epochs_path,
        mark_verified=config.datapath.mark_verified if closed(config) is not None else 0,
        mark_glance=config.verify.mark_glance,
        log_level=config.daemon.log_level,
        forward_lowered=forward_lowered,
        stamp_fail_open=config.stamp.fail == "open",
        verify_fail_open=config.verify.fail == "open",
        stamp_overload_open=config.stamp.overload == "open",
        verify_overload_open=config.verify.overload == "open",
    )


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """Return bytes from a worker; none when it has ended, also after kill -9 with messages to it unread."""
    try:
        return await reader.read(1 << 20)
    except ConnectionError:
        return b""
