"""The offload's control: tables, keys and profiles into the maps of the BPF programs, events and counters out of them.

The programs run without a daemon. A daemon that starts after another one was killed, or replaces it, finds the pinned
maps and the attached programs, takes the maps over and puts its own programs in the place of the old ones.

No packet meets half of a change: new entries are written first, then settings that cover old and new entries, then
the old entries are deleted. Everything blocks for as long as the kernel takes: milliseconds for thousands of entries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from scentd.config.sections import Config
from scentd.core.allocate.actions.quarantine import QUARANTINED_MAX
from scentd.core.offload import decode, encode
from scentd.core.offload.coverage import may_have_guests
from scentd.core.offload.encode import StampEntries, VerifyEntries
from scentd.core.offload.receiving import receiving_entry, with_lag
from scentd.core.tables import StampPair, StampTable, VerifyTable
from scentd.datapath.offload import libbpf, programs
from scentd.datapath.offload.attach import Attacher
from scentd.datapath.offload.bpfmap import F_LOCK, Map, RingBuffer
from scentd.datapath.offload.counts import Counts
from scentd.datapath.offload.interfaces import Interfaces, read_served
from scentd.datapath.offload.libbpf import LoadError
from scentd.datapath.offload.programs import Programs
from scentd.errors import HostError
from scentd.model import Outgoing
from scentd.system.rtnetlink import LinkMessage
from scentd.wire import maps

log = logging.getLogger(__name__)

RUN_NS = 4_000_000  # a pair's packets share a fragment for so long: a receiver merges the packets of one burst
LEASE_NS = 300_000_000_000  # how long the verifier goes on without a daemon; a restart is a matter of seconds
FOREVER = (1 << 64) - 1
NODES_MAX = 1 << 20
TALLIES = 8  # outcomes of a pair that are counted, on average
TagKeys = Callable[[int, int], list[bytes] | None]  # (pair, epoch): those it may have as a sender; None: no such pair


class OffloadError(HostError):
    """The offload cannot do something; the queue does it instead."""


@contextmanager
def offload_errors() -> Iterator[None]:
    """Turn every refusal of the kernel, the host or the configuration into an OffloadError."""
    try:
        yield
    except LoadError as error:
        log.debug("what libbpf and the kernel's verifier said:\n%s", error.log)
        raise OffloadError(f'{error} (daemon.log_level = "debug" shows the log)') from error
    except HostError as error:
        raise OffloadError(str(error)) from error


class Offload:
    """The programs of this host. `consume` calls `on_event`, on its caller's thread.

    Raises OffloadError if the kernel, our rights or `datapath.pin_dir` do not allow the offload.
    """

    def __init__(self, config: Config, on_event: Callable[[decode.OffloadEvent | decode.RefusedPacket], None]) -> None:
        with offload_errors():
            libbpf.library()
            if Attacher(config.datapath.pin_dir).is_foreign():
                raise HostError(
                    f"datapath.pin_dir {config.datapath.pin_dir}: a daemon in another network namespace uses it; "
                    "give each a directory of its own"
                )
            programs.make_directory(programs.maps_directory(config.datapath.pin_dir))
        self._datapath = config.datapath
        self._on_event = on_event
        self.interfaces = Interfaces(config.datapath.pin_dir)
        self._programs: Programs | None = None
        self._old_programs: Programs | None = None  # still attached, until `attach` replaces them
        self._ring: RingBuffer | None = None
        self._prefixes: dict[str, dict[bytes, bytes]] = {}
        self._pairs: dict[int, StampPair] = {}
        self._verify_entries: VerifyEntries | None = None
        self._quarantine: dict[bytes, bytes] = {}
        self._fail_open = True  # what bridges forward is let by when the verifier has had no daemon for too long
        self.counts = Counts()  # packets since this daemon's start
        self._lock = threading.RLock()  # tables are written on one thread, interfaces followed on another

    # -- tables ----------------------------------------------------------

    def configure(
        self,
        config: Config,
        stamp: StampTable,
        unstamped: Sequence[str],
        verify: VerifyTable,
        addresses: Sequence[str],
        tag_keys: TagKeys,
    ) -> None:
        """Write new tables; pairs that stay keep their state. `addresses` are the host's own.

        `unstamped` are prefixes of networks for which this host stamps nothing. `tag_keys` tells whether another
        daemon's maps hold profiles of this configuration.
        Raises OffloadError.
        """
        with self._lock, offload_errors():
            marks = encode.Marks(self._datapath.mark_verified, config.verify.mark_glance)
            # Where masquerading hides whose a forwarded packet is, the rules decide: they see the source before.
            forwarded = self._datapath.mark_stamped if config.stamp.forwarded else 0
            want = encode.stamp_entries(stamp, unstamped, forwarded, RUN_NS, addresses)
            accept = encode.verify_entries(verify, addresses, marks, stamp)
            needed = sizes(want, accept, len(stamp.pairs))
            first = self._programs is None
            self.interfaces.guests = config.stamp.forwarded or may_have_guests(
                [prefix for network in config.network for prefix in network.addresses], addresses
            )
            self._fail_open = config.verify.fail == "open"
            if self._programs is None or any(self._programs.capacity(name) < n for name, n in needed.items()):
                self._renew(needed)
            self.tick()
            if first:
                self._drop_foreign(tag_keys)
            self._write_stamp_maps(want, stamp)
            self._write_verify_maps(accept)

    def _renew(self, needed: Mapping[str, int]) -> None:
        """Load the programs: with the pinned maps if these are large enough, else with larger ones."""
        if self._programs is None:
            fds = programs.open_pinned(self._datapath.pin_dir)
            loaded = Programs(programs.with_spare(needed), fds)
            if fds and any(loaded.capacity(name) < n for name, n in needed.items()):
                loaded = programs.enlarge(loaded, needed)
        else:
            loaded = programs.enlarge(self._programs, needed)
            self._old_programs = self._old_programs or self._programs
        self.counts.begin(loaded)
        self._programs = loaded
        self._prefixes = {name: dict(loaded.maps[f"{name}.prefixes"].items()) for name in programs.OBJECTS}
        before = (
            self._ring
        )  # closed only now, so that the new descriptor has another number: the event loop tells by it
        self._ring = RingBuffer(loaded.events(), lambda data: self._on_event(decode.parse_event(data)))
        if before is not None:
            before.close()

    def _drop_foreign(self, tag_keys: TagKeys) -> None:
        """Drop the profiles in another daemon's maps that do not fit our keys."""
        outgoing = self._map("stamp.outgoing")
        found = {encode.PAIR.unpack(key)[0]: value for key, value in outgoing.items()}
        outgoing.delete_many(encode.PAIR.pack(n) for n, value in found.items() if not is_ours(value, n, tag_keys))

    def _write_stamp_maps(self, want: StampEntries, table: StampTable) -> None:
        outgoing = self._map("stamp.outgoing")
        self._pairs = {p.pair: p for p in table.pairs}
        current = {encode.PAIR.unpack(key)[0]: value for key, value in outgoing.items()}
        self._write_prefixes("stamp", want.prefixes, want.settings_for)
        outgoing.delete_many(encode.PAIR.pack(pair) for pair in current.keys() - self._pairs.keys())
        for pair in current.keys() & self._pairs.keys():
            changed = encode.with_flags(current[pair], self._pairs[pair])
            if changed != current[pair]:
                outgoing.update(encode.PAIR.pack(pair), changed)

    def _write_verify_maps(self, want: VerifyEntries) -> None:
        identities, receiving = self._map("verify.identities"), self._map("verify.receiving")
        current = {encode.PAIR.unpack(key)[0] for key, _ in receiving.items()}
        empty = bytes(maps.RECEIVING_SIZE)
        receiving.update_many((encode.PAIR.pack(pair), empty) for pair in want.pairs - current)
        removed, added = encode.diff(dict(identities.items()), want.identities)
        identities.update_many(added)
        self._verify_entries = want
        self._write_prefixes("verify", want.prefixes | self._quarantine, want.settings_for)
        identities.delete_many(removed)
        self.counts.keep(current - want.pairs)
        receiving.delete_many(encode.PAIR.pack(pair) for pair in current - want.pairs)

    def _write_prefixes(
        self, name: str, want: Mapping[bytes, bytes], settings_for: Callable[[Iterable[bytes]], bytes]
    ) -> None:
        """Make the prefixes of one program equal to `want`."""
        current, prefixes = self._prefixes[name], self._map(f"{name}.prefixes")
        removed, added = encode.diff(current, want)
        self._switch_settings(name, settings_for(current.keys() | want.keys()))
        prefixes.update_many(added)
        prefixes.delete_many(removed)
        self._switch_settings(name, settings_for(want))
        self._prefixes[name] = dict(want)

    def _switch_settings(self, name: str, settings: bytes) -> None:
        """Write the unused copy of the settings, then select it, which also empties the processors' caches."""
        selector, zero = self._map(f"{name}.selector"), encode.PAIR.pack(0)
        generation = (encode.PAIR.unpack(selector.lookup(zero) or zero)[0] + 1) & 0xFFFFFFFF
        self._map(f"{name}.settings").update(encode.PAIR.pack(generation & 1), settings)
        selector.update(zero, encode.PAIR.pack(generation))

    def _map(self, name: str) -> Map:
        assert self._programs is not None  # configure() comes first
        return self._programs.maps[name]

    # -- the running daemon ------------------------------------------------

    def publish(self, outgoing: Mapping[int, Outgoing]) -> None:
        """Begin new epochs, by pair. A pair that is not in the table is ignored."""
        offset = time.time() - time.monotonic()
        begun = [(self._pairs[pair], out) for pair, out in outgoing.items() if pair in self._pairs]
        self._map("stamp.outgoing").update_many(encode.outgoing_entry(pair, out, offset) for pair, out in begun)

    def quarantine(self, releases: Mapping[str, float], of_pairs: Mapping[int, Mapping[str, float]]) -> None:
        """Drop packets from these prefixes, each until a Unix time; `of_pairs`: only those that a pair's key made.

        Raises HostError for too many prefix lengths.
        """
        offset = time.time() - time.monotonic()

        def seconds(releases: Mapping[str, float]) -> dict[str, int]:
            return {prefix: max(0, int(until - offset) + 1) for prefix, until in releases.items()}

        barred = encode.barred_entries({pair: seconds(found) for pair, found in of_pairs.items()})
        before, self._quarantine = self._quarantine, encode.quarantine_entries(seconds(releases)) | barred
        if self._verify_entries is not None:
            want = self._verify_entries
            try:
                self._write_prefixes("verify", want.prefixes | self._quarantine, want.settings_for)
            except HostError:
                self._quarantine = before
                self._write_prefixes("verify", want.prefixes | before, want.settings_for)
                raise

    def tick(self) -> None:
        """Once a second: give the programs the time, and renew their lease."""
        now = time.monotonic_ns()
        until = now + LEASE_NS
        offset = (time.time_ns() - now) & 0xFFFFFFFFFFFFFFFF  # negative if the wall clock is before the boot; it wraps
        clock = maps.CLOCK.pack(offset, until, until if self._fail_open else FOREVER)
        self._map("verify.clock").update(encode.PAIR.pack(0), clock)

    def end_lease(self) -> None:
        """Make the verifier decide nothing from now on: without its mark the rules send packets to the queue."""
        if self._programs is not None:
            self._map("verify.clock").update(encode.PAIR.pack(0), maps.CLOCK.pack(0, 0, 0))

    def fileno(self) -> int:
        """A descriptor that is readable when there are events."""
        assert self._ring is not None  # configure() comes first
        return self._ring.fileno()

    def consume(self) -> None:
        """Hand the waiting events to `on_event`."""
        if self._ring is not None:
            self._ring.consume()

    def states(self) -> dict[int, decode.PairState]:
        """What the programs have received in each pair's highest epoch."""
        states = self._map("verify.receiving").items(F_LOCK)
        return {encode.PAIR.unpack(key)[0]: decode.parse_receiving(value) for key, value in states}

    def state(self, pair: int) -> decode.PairState | None:
        value = self._map("verify.receiving").lookup(encode.PAIR.pack(pair), F_LOCK)
        return None if value is None else decode.parse_receiving(value)

    def raise_epoch(
        self, pair: int, epoch: int, since: int, before: int = 0, leapt: int = 0, lag: int | None = None
    ) -> None:
        """Raise a pair's epoch to one that the queue has accepted, or that was accepted before the start. Without `lag`
        it stays.

        If the program accepts a packet between reading and writing, its fragment is lost, and accepted again later; and
        the packet is not counted as its pair's.
        """
        receiving, key = self._map("verify.receiving"), encode.PAIR.pack(pair)
        value = receiving.lookup(key, F_LOCK)
        if value is None:
            return
        state = decode.parse_receiving(value)
        if epoch > state.highest:
            same_second = since == state.since and state.before  # as in accept.h
            before = max(before, state.before if same_second else state.highest)
            lag = state.lag if lag is None else lag
            raised = receiving_entry(epoch, before, since, state.accepted, max(leapt, state.leapt), lag)
            receiving.update(key, raised, F_LOCK)

    def set_lag(self, pair: int, lag: int) -> None:
        """Accept epochs of up to so many seconds below the highest. Nothing is written if the program knows it.

        If the program raises the highest between reading and writing, it raises it again with the next packet.
        """
        receiving, key = self._map("verify.receiving"), encode.PAIR.pack(pair)
        value = receiving.lookup(key, F_LOCK)
        if value is not None and decode.parse_receiving(value).lag != lag:
            receiving.update(key, with_lag(value, lag), F_LOCK)

    def fall_back(self, pair: int, epoch: int, leapt: int) -> None:
        """Go back to an epoch from before a leap to `leapt`."""
        receiving, key = self._map("verify.receiving"), encode.PAIR.pack(pair)
        value = receiving.lookup(key, F_LOCK)
        if value is not None:
            state = decode.parse_receiving(value)
            receiving.update(key, receiving_entry(epoch, 0, 0, state.accepted, leapt, state.lag), F_LOCK)

    def sent_bits(self, pair: int, epoch: int) -> int:
        """Bits of an epoch's fragments that the program has sent."""
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

    def must_wait(self) -> bool:
        """Whether programs run whose maps could not be taken over: these stay until there is a profile to send."""
        loaded = self._programs
        return loaded is not None and not loaded.reuses_maps and read_served(self._datapath.pin_dir, ()) is not None

    def attach(self) -> None:
        """Attach the programs to all interfaces. Raises OffloadError."""
        assert self._programs is not None  # configure() comes first
        with self._lock, offload_errors():
            programs.make_directory(programs.maps_directory(self._datapath.pin_dir))  # somebody may have removed it
            self.interfaces.attach(self._programs)
            self._programs.pin(self._datapath.pin_dir)
        if self._old_programs is not None:
            self._old_programs.close()
            self._old_programs = None

    def follow(self, gone: Collection[int], links: Mapping[int, LinkMessage]) -> None:
        """Attach the programs to new interfaces; `gone` and `links` as in Interfaces.follow(). Raises OffloadError."""
        with self._lock, offload_errors():
            self.interfaces.follow(gone, links)

    def close(self) -> None:
        """Close the descriptors; programs and maps stay in the kernel."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        for loaded in (self._old_programs, self._programs):
            if loaded is not None:
                loaded.close()
        self._old_programs = self._programs = None


def remove_offload(pin_dir: str) -> None:
    """Remove all programs and maps of scentd in this network namespace; having none is no error. Raises HostError."""
    if libbpf.available() is None and not (attacher := Attacher(pin_dir)).is_foreign():
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
        "verify.accepted": max(verify.pairs, default=0) + 1,
        "stamp.tallies": TALLIES * pairs,
        "verify.tallies": TALLIES * len(verify.pairs),
        "verify.nodes": min(maps.NODES * len(verify.pairs), NODES_MAX),
    }


def is_ours(value: bytes, pair: int, tag_keys: TagKeys) -> bool:
    """Whether an entry of `stamp.outgoing` fits this configuration: another one may have used the pair's number."""
    fields = maps.OUTGOING.unpack(value)
    epoch = int.from_bytes(value[maps.OUTGOING_EPOCH_AT :][:4], "little")
    return any(encode.key_words(key) == fields[:2] for key in tag_keys(pair, epoch) or ())
