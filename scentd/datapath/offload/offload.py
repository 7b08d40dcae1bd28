"""The offload's control: tables, keys and profiles into the maps of the BPF programs, and back what they saw.

The programs run without us. A daemon that was killed, or is replaced by a newer one, finds maps and programs
where they are pinned, takes the maps over and puts its own programs into the places of the old ones.

A change is written so that no packet meets half of it: what is new, then the settings that find both, then
what is old goes. Everything blocks for as long as the kernel takes: milliseconds for thousands of entries.
`attach` and `remove_offload` use netlink and must not be called on the thread of a running event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from scentd.config.sections import Config
from scentd.core.allocate.actions.quarantine import QUARANTINED_MAX
from scentd.core.offload import decode, encode
from scentd.core.offload.coverage import Coverage
from scentd.core.offload.encode import StampEntries, VerifyEntries
from scentd.core.tables import StampPair, StampTable, VerifyTable
from scentd.datapath.offload import libbpf, programs
from scentd.datapath.offload.attach import Attacher
from scentd.datapath.offload.bpfmap import F_LOCK, Map, RingBuffer
from scentd.datapath.offload.interfaces import Interfaces, in_place
from scentd.datapath.offload.libbpf import LoadError
from scentd.datapath.offload.programs import Programs
from scentd.errors import HostError
from scentd.model import Outgoing
from scentd.wire import maps

log = logging.getLogger(__name__)

RUN_NS = 4_000_000  # a pair's packets share a fragment for so long: a receiver merges what comes in one burst
LEASE_NS = 300_000_000_000  # how long the verifier goes on without a daemon; a restart is a matter of seconds
NODES_MAX = 1 << 20
TagKeys = Callable[[int, int], bytes | None]  # (pair, epoch): its tag key as a sender, None if there is no such pair


class OffloadError(HostError):
    """What the offload cannot do: the queue does it then."""


@contextmanager
def refusals() -> Iterator[None]:
    """Whatever the kernel, the host or the configuration does not allow is an OffloadError."""
    try:
        yield
    except LoadError as error:
        log.debug("what libbpf and the kernel's verifier said:\n%s", error.log)
        raise OffloadError(f'{error} (daemon.log_level = "debug" shows the log)') from error
    except HostError as error:
        raise OffloadError(str(error)) from error


class Offload:
    """The programs of this host. `on_event` is called from `consume`, on whose thread it likes.

    Raises OffloadError where the kernel, its rights or `datapath.pin_dir` do not allow the offload.
    """

    def __init__(self, config: Config, on_event: Callable[[decode.OffloadEvent], None]) -> None:
        with refusals():
            libbpf.library()
            if Attacher(config.datapath.pin_dir).foreign():
                raise HostError(
                    f"datapath.pin_dir {config.datapath.pin_dir}: a daemon in another network namespace uses it; "
                    "give each a directory of its own"
                )
            programs.make_directory(programs.maps_directory(config.datapath.pin_dir))
        self._datapath, self._verify, self._forwarded = config.datapath, config.verify, config.stamp.forwarded
        self._on_event = on_event
        self.interfaces = Interfaces(config.datapath.pin_dir)
        self._programs: Programs | None = None
        self._before: Programs | None = None  # still attached, until `attach` puts the new ones in their places
        self._ring: RingBuffer | None = None
        self._prefixes: dict[str, dict[bytes, bytes]] = {}
        self._pairs: dict[int, StampPair] = {}
        self._verify_entries: VerifyEntries | None = None
        self._quarantine: dict[bytes, bytes] = {}
        self._past: Counter[str] = Counter()
        self._lock = threading.RLock()  # tables are written on one thread, interfaces followed on another

    # -- tables ----------------------------------------------------------

    def configure(
        self,
        stamp: StampTable,
        unstamped: Sequence[str],
        verify: VerifyTable,
        addresses: Sequence[str],
        tag_keys: TagKeys,
    ) -> None:
        """Take new tables; what is known of pairs that stay is kept. `addresses` are the host's own.

        `unstamped` are prefixes of networks for which this host stamps nothing. `tag_keys` tells whether maps of
        another daemon are ours.
        Raises OffloadError.
        """
        with self._lock, refusals():
            marks = encode.Marks(self._datapath.mark_verified, self._datapath.mark_rejected, self._verify.mark_glance)
            # Forwarded packets are ours if the rules say so: they see the source before NAT.
            forwarded = self._datapath.mark_verified if self._forwarded else 0
            want = encode.stamp_entries(stamp, unstamped, forwarded, RUN_NS)
            accept = encode.verify_entries(verify, addresses, marks)
            needed = sizes(want, accept, len(stamp.pairs))
            if self._programs is None or any(self._programs.room(name) < n for name, n in needed.items()):
                self._renew(needed)
            self.tick()
            self._stamp(want, stamp, tag_keys)
            self._accept(accept)

    def _renew(self, needed: Mapping[str, int]) -> None:
        """Load the programs: with the maps that are pinned if they are large enough, else with larger ones."""
        if self._programs is None:
            taken = programs.pinned(self._datapath.pin_dir)
            made = Programs(programs.grown(needed), taken)
            if taken and any(made.room(name) < n for name, n in needed.items()):
                made = programs.larger(made, needed)
            self._past -= self._totals(made)  # what was counted before this daemon
        else:
            self._past += self._totals(self._programs)
            made = programs.larger(self._programs, needed)
            self._before = self._before or self._programs
        if self._ring is not None:
            self._ring.close()
        self._programs = made
        self._prefixes = {name: dict(made.maps[f"{name}.prefixes"].items()) for name in programs.OBJECTS}
        self._ring = RingBuffer(made.events(), lambda data: self._on_event(decode.parse_event(data)))

    def _stamp(self, want: StampEntries, table: StampTable, tag_keys: TagKeys) -> None:
        outgoing = self._map("stamp.outgoing")
        self._pairs = {p.pair: p for p in table.pairs}
        there = {encode.PAIR.unpack(key)[0]: value for key, value in outgoing.items()}
        ours = {pair: value for pair, value in there.items() if is_ours(value, pair, tag_keys)}
        outgoing.delete_many(encode.PAIR.pack(pair) for pair in there.keys() - ours.keys())
        self._write("stamp", want.prefixes, want.settings_for)
        outgoing.delete_many(encode.PAIR.pack(pair) for pair in ours.keys() - self._pairs.keys())
        for pair in ours.keys() & self._pairs.keys():
            changed = encode.with_flags(ours[pair], self._pairs[pair])
            if changed != ours[pair]:
                outgoing.update(encode.PAIR.pack(pair), changed)

    def _accept(self, want: VerifyEntries) -> None:
        identities, receiving = self._map("verify.identities"), self._map("verify.receiving")
        there = {encode.PAIR.unpack(key)[0] for key, _ in receiving.items()}
        empty = bytes(maps.RECEIVING_SIZE)
        receiving.update_many((encode.PAIR.pack(pair), empty) for pair in want.pairs - there)
        gone, new = encode.diff(dict(identities.items()), want.identities)
        identities.update_many(new)
        self._verify_entries = want
        self._write("verify", want.prefixes | self._quarantine, want.settings_for)
        identities.delete_many(gone)
        receiving.delete_many(encode.PAIR.pack(pair) for pair in there - want.pairs)

    def _write(self, name: str, want: Mapping[bytes, bytes], settings_for: Callable[[Iterable[bytes]], bytes]) -> None:
        """Make a program's prefixes these."""
        have, prefixes = self._prefixes[name], self._map(f"{name}.prefixes")
        gone, new = encode.diff(have, want)
        self._set(name, settings_for(have.keys() | want.keys()))
        prefixes.update_many(new)
        prefixes.delete_many(gone)
        self._set(name, settings_for(want))
        self._prefixes[name] = dict(want)

    def _set(self, name: str, settings: bytes) -> None:
        """Write the settings that are not in use, then use them; what processors remember is forgotten with that."""
        selector, zero = self._map(f"{name}.selector"), encode.PAIR.pack(0)
        turned = (encode.PAIR.unpack(selector.lookup(zero) or zero)[0] + 1) & 0xFFFFFFFF
        self._map(f"{name}.settings").update(encode.PAIR.pack(turned & 1), settings)
        selector.update(zero, encode.PAIR.pack(turned))

    def _map(self, name: str) -> Map:
        assert self._programs is not None  # configure() comes first
        return self._programs.maps[name]

    # -- the running daemon ------------------------------------------------

    def publish(self, outgoing: Mapping[int, Outgoing]) -> None:
        """Begin new epochs, by pair. A pair that is not in the table is ignored."""
        offset = time.time() - time.monotonic()
        begun = [(self._pairs[pair], out) for pair, out in outgoing.items() if pair in self._pairs]
        self._map("stamp.outgoing").update_many(encode.outgoing_entry(pair, out, offset) for pair, out in begun)

    def quarantine(self, releases: Mapping[str, float]) -> None:
        """Drop what comes from these prefixes until a Unix time each. Raises HostError for too many lengths."""
        offset = time.time() - time.monotonic()
        seconds = {prefix: max(0, int(until - offset) + 1) for prefix, until in releases.items()}
        before, self._quarantine = self._quarantine, encode.quarantine_entries(seconds)
        if self._verify_entries is not None:
            want = self._verify_entries
            try:
                self._write("verify", want.prefixes | self._quarantine, want.settings_for)
            except HostError:
                self._quarantine = before
                self._write("verify", want.prefixes | before, want.settings_for)
                raise

    def tick(self) -> None:
        """Once a second: the programs learn what time it is."""
        now = time.monotonic_ns()
        self._map("verify.clock").update(encode.PAIR.pack(0), maps.CLOCK.pack(time.time_ns() - now, now + LEASE_NS))

    def end_lease(self) -> None:
        """The verifier decides nothing from now on: the queue judges what its rules will not let by for a mark."""
        if self._programs is not None:
            self._map("verify.clock").update(encode.PAIR.pack(0), maps.CLOCK.pack(0, 0))

    def fileno(self) -> int:
        """Readable when there are events."""
        assert self._ring is not None  # configure() comes first
        return self._ring.fileno()

    def consume(self) -> None:
        """Hand the events on."""
        if self._ring is not None:
            self._ring.consume()

    def states(self) -> dict[int, decode.PairState]:
        """What has come of each pair in its highest epoch."""
        states = self._map("verify.receiving").items(F_LOCK)
        return {encode.PAIR.unpack(key)[0]: decode.parse_receiving(value) for key, value in states}

    def state(self, pair: int) -> decode.PairState | None:
        value = self._map("verify.receiving").lookup(encode.PAIR.pack(pair), F_LOCK)
        return None if value is None else decode.parse_receiving(value)

    def raise_epoch(self, pair: int, epoch: int, since: int) -> None:
        """The queue has accepted a higher epoch, or one was accepted before the start.

        A packet of the program's that comes between reading and writing is undone: its fragment is taken again.
        """
        receiving, key = self._map("verify.receiving"), encode.PAIR.pack(pair)
        value = receiving.lookup(key, F_LOCK)
        if value is None:
            return
        highest = decode.parse_receiving(value).highest
        if epoch > highest:
            raised = maps.RECEIVING.pack(0, epoch, highest, since, 0, 0, 0, 0, b"", 0, b"", b"")
            receiving.update(key, raised, F_LOCK)

    def sent(self, pair: int, epoch: int) -> int:
        """Bits of the fragments of an epoch that have left."""
        value = self._map("stamp.outgoing").lookup(encode.PAIR.pack(pair))
        at, bits = decode.parse_outgoing(value) if value is not None else (0, 0)
        return bits if at == epoch else 0

    def drain_nodes(self) -> dict[int, list[bytes]]:
        """Source addresses of accepted packets since the last drain, by pair."""
        nodes = self._map("verify.nodes")
        keys = list(nodes.keys())
        nodes.delete_many(keys)
        drained: dict[int, list[bytes]] = {}
        for pair, address in map(decode.parse_node, keys):
            drained.setdefault(pair, []).append(address)
        return drained

    def counters(self) -> Counter[str]:
        """Packets since this daemon's start, by the names that workers use."""
        made = Counter(self._past)
        if self._programs is not None:
            made.update(self._totals(self._programs))
        return made

    @staticmethod
    def _totals(loaded: Programs) -> Counter[str]:
        totals: Counter[str] = Counter()
        for name, read in (("stamp", decode.stamp_counters), ("verify", decode.verify_counters)):
            counted = loaded.maps[f"{name}.counters"]
            size = maps.STAMP_COUNTERS if name == "stamp" else maps.VERIFY_COUNTERS
            rows = [counted.lookup_percpu(encode.PAIR.pack(i)) or [] for i in range(size)]
            totals.update(read([sum(int.from_bytes(v, "little") for v in row) for row in rows]))
        return totals

    def must_wait(self) -> bool:
        """Whether programs serve whose maps we could not take over: they go on until we have something to send."""
        loaded = self._programs
        return loaded is not None and not loaded.taken_over and in_place(self._datapath.pin_dir, ()) is not None

    def attach(self, leading: Collection[int]) -> Coverage:
        """Put the programs on all interfaces; those `leading` to peers need not queue any more. Raises OffloadError."""
        assert self._programs is not None  # configure() comes first
        with self._lock, refusals():
            served = self.interfaces.attach(self._programs, leading)
            self._programs.pin(self._datapath.pin_dir)
        if self._before is not None:
            self._before.close()
            self._before = None
        return served

    def close(self) -> None:
        """Let go; programs and maps stay."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        for loaded in (self._before, self._programs):
            if loaded is not None:
                loaded.close()
        self._before = self._programs = None


def remove_offload(pin_dir: str) -> None:
    """All programs and maps of ours in this network namespace, whoever left them; none is fine. Raises HostError."""
    if libbpf.available() is None and not (attacher := Attacher(pin_dir)).foreign():
        attacher.remove()
        programs.unpin(pin_dir)


def sizes(stamp: StampEntries, verify: VerifyEntries, pairs: int) -> dict[str, int]:
    """Entries that each map needs."""
    return {
        "stamp.prefixes": len(stamp.prefixes),
        "stamp.outgoing": pairs,
        "verify.prefixes": len(verify.prefixes) + QUARANTINED_MAX,
        "verify.identities": len(verify.identities),
        "verify.receiving": len(verify.pairs),
        "verify.nodes": min(maps.NODES * len(verify.pairs), NODES_MAX),
    }


def is_ours(value: bytes, pair: int, tag_keys: TagKeys) -> bool:
    """Whether what is being sent for a pair is what this configuration would send: pairs go by number."""
    fields = maps.OUTGOING.unpack(value)
    epoch = int.from_bytes(value[maps.OUTGOING_EPOCH_AT :][:4], "little")
    expected = tag_keys(pair, epoch)
    return expected is not None and encode.key_words(expected) == fields[:2]
