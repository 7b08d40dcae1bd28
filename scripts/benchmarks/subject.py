"""The product under test: its own worker process, fed with tables and epochs as the daemon feeds it."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.lab import FAR, MTU, NEAR, Lab, LabError
from scentd.config.sections import Config
from scentd.core.packet.stamp import Stamper
from scentd.core.packet.verify import Verifier
from scentd.core.pairs import Pairs
from scentd.core.profile import issue
from scentd.core.tables import EPOCH_ROW, StampTable
from scentd.datapath.queue import link
from scentd.kinds import config_from
from scentd.model import Outgoing, Statement
from scentd.state import epochs
from scentd.wire import keys, layout

STATEMENT = Statement(5, 0.42, {"cpu": 0.42, "memory": 0.6}, frozenset(("metric=cpu;level=medium",)))
QUEUE_LENGTH = 4096
LIMITS = tuple((FAR[family], MTU) for family in (4, 6))


class Party:
    """Both ends of a pair: near issues and stamps, far verifies. A context manager for its temporary files."""

    def __init__(self) -> None:
        self.near, self.far = keys.identity(b"\1" * 32), keys.identity(b"\2" * 32)
        self.sends = Pairs(self._config("near", NEAR, FAR, self.far), {"near": (self.near,)}, {("near", "peer"): 0})
        self.takes = Pairs(self._config("far", FAR, NEAR, self.near), {"far": (self.far,)}, {("far", "peer"): 0})
        self._issuer = issue.Issuer(self.near, self.sends.issued_pairs("near"), issue.metric_slots({}))
        self._epoch = 0
        self.folder = tempfile.TemporaryDirectory(prefix="scentd-bench-")
        self.epochs_path = Path(self.folder.name, "epochs")
        self._slot = epochs.slot_id("seen", self.near.public.raw, self.far.public.raw)
        epochs.prepare(self.epochs_path, [self._slot])

    def __enter__(self) -> Party:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    @staticmethod
    def _config(name: str, own: dict[int, str], other: dict[int, str], peer: keys.Identity) -> Config:
        return config_from(
            {
                "network": [
                    {"name": name, "key_file": "-", "addresses": list(own.values()), "source": [{"kind": "cpu"}]}
                ],
                "peer": [{"name": "peer", "public_key": str(peer.public), "addresses": list(other.values())}],
            }
        )

    def next_epoch(self) -> dict[int, Outgoing]:
        """By pair, of which there is one."""
        self._epoch = max(int(time.time()), self._epoch + 1)
        [outgoing] = self._issuer.issue(STATEMENT, self._epoch)
        return {0: outgoing}

    def stamp_table(self) -> StampTable:
        return self.sends.stamp_table(LIMITS)

    def tables(self) -> link.PathTables:
        period = keys.period_of(int(time.time()))
        verify = self.takes.verify_table(period)
        return link.PathTables(self.stamp_table(), verify, str(self.epochs_path))

    def stamper(self) -> Stamper:
        made = Stamper()
        made.configure(self.stamp_table())
        made.update(self.next_epoch())
        made.tick(time.time())
        return made

    def verifier(self) -> Verifier:
        made = Verifier([0] * EPOCH_ROW)
        made.configure(self.tables().verify, [0] * 2 * 512)
        made.tick(time.time())
        return made

    def stamped(self, packets: list[bytes]) -> list[bytes]:
        """Each packet of the list with each of the ten fragments of a new epoch."""
        result = []
        stamper = self.stamper()
        for _ in range(layout.FRAGMENTS):
            stamper.forget_flows()
            for packet in packets:
                made = stamper.stamp(packet)
                if isinstance(made, int):
                    raise LabError(f"the stamper refuses a packet: {layout.UNSTAMPED[made]}")
                result.append(made)
        return result


class Product:
    """One worker process of scentd with its stamping and its verifying queue."""

    def __init__(self, lab: Lab, end: str, party: Party, stamp_queue: int, verify_queue: int) -> None:
        self.party = party
        self.stamp_queue, self.verify_queue = stamp_queue, verify_queue
        self._ours, theirs = link.pair()
        fd = theirs.fileno()
        # Closed, because a packet that a full queue lets pass would be counted by nobody.
        setup = link.WorkerSetup(stamp_queue, verify_queue, QUEUE_LENGTH, 0x10000000, 0x20000000)
        self.process: subprocess.Popen[bytes] = lab.python(end, "scentd.datapath.queue.worker", str(fd), pass_fds=[fd])
        theirs.close()
        self.counters: dict[str, int] = {}
        self._ours.sendall(link.frame(setup))
        first = self._receive(link.MessageReader(link.FromWorker))
        if not isinstance(first, link.Ready):
            raise LabError(f"the worker did not start: {first}")
        self._ours.sendall(link.frame(party.tables()))
        threading.Thread(target=self._listen, daemon=True).start()

    def _receive(self, reader: link.MessageReader) -> link.FromWorker | None:
        self._ours.settimeout(20)
        while True:
            data = self._ours.recv(1 << 16)
            for message in reader.feed(data):
                self._ours.settimeout(None)
                return message
            if not data:
                return None

    def _listen(self) -> None:
        """Take what the worker says, so that its link never fills; keep its newest counters."""
        reader = link.MessageReader(link.FromWorker)
        while data := self._receive_some():
            for message in reader.feed(data):
                if isinstance(message, link.WorkerReport):
                    self.counters = message.counters

    def _receive_some(self) -> bytes:
        try:
            return self._ours.recv(1 << 16)
        except OSError:
            return b""

    def new_epoch(self) -> None:
        self._ours.sendall(link.frame(link.NewEpochs(self.party.next_epoch())))

    def check(self, counter: str) -> None:
        """Raise LabError unless every packet was treated as meant: refused packets are cheap, and would flatter."""
        others = {k: v for k, v in self.counters.items() if v and k not in (counter, "link_overflow")}
        if others or not self.counters.get(counter):
            raise LabError(f"not every packet was {counter}: {others}")

    def close(self) -> None:
        """Closing the link ends the worker."""
        self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()
        self.process.wait(5)
