"""From the tables of the packet path to keys and values of the BPF maps (bpf/scent_maps.h). Pure.

decode.py is the way back. The program stops at the longest prefix that covers an address, as PrefixMap
does; so an entry also says what a shorter prefix around it would have said.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from struct import Struct
from typing import NamedTuple

from scentd.core.packet.stamp import IP_MAX
from scentd.core.tables import Incoming, StampPair, StampTable, Treatments, VerifyTable
from scentd.errors import HostError
from scentd.model import Outgoing
from scentd.prefix import BITS, NumericPrefix, by_numeric, nested, numeric, outside
from scentd.wire import layout, maps, tag
from scentd.wire.carrier import CARRIERS

SHARED = 1 << 28  # numbers from here on are of what networks share; pairs are fewer
PAIR = Struct("=I")  # the key of the maps by pair
QUEUE_INSTEAD = 'until then the queue does the work, as with datapath.offload = "off"'
# Whose prefix lengths the settings hold, in the order of the structs; what the user calls them.
STAMP_SCOPES = (maps.SCOPE_LOCAL, maps.SCOPE_ROUTE)
VERIFY_SCOPES = (maps.SCOPE_LOCAL, maps.SCOPE_SOURCE, maps.SCOPE_MEMBER, maps.SCOPE_QUARANTINE)
SETTINGS = {
    maps.SCOPE_LOCAL: "network.addresses",
    maps.SCOPE_SOURCE: "peer.addresses",
    maps.SCOPE_MEMBER: "peer.addresses",
    maps.SCOPE_ROUTE: "peer.addresses, with the host's routes inside them",
    maps.SCOPE_QUARANTINE: "policy.do of kind quarantine",
}
TREATMENTS = {name: number for number, name in layout.TREATMENTS.items()}


class Marks(NamedTuple):
    """Bits of the packet mark: datapath.mark_verified, datapath.mark_rejected and verify.mark_glance."""

    verified: int
    rejected: int
    glance: int = 0


class StampEntries(NamedTuple):
    """What the stamper's maps should hold: struct scent_prefix -> scent_prefix_value; struct scent_stamp_settings."""

    prefixes: dict[bytes, bytes]
    settings: bytes

    def settings_for(self, prefixes: Iterable[bytes]) -> bytes:
        """The settings with the lengths of these keys: those of old and new while entries change. Raises HostError."""
        return self.settings[: maps.STAMP_SETTINGS_LOCAL4_AT] + b"".join(lengths(prefixes, STAMP_SCOPES))


class VerifyEntries(NamedTuple):
    """What the verifier's maps should hold: as above; struct scent_identity -> scent_incoming; numbers of pairs.

    Whoever is in quarantine is not in it: add `quarantine_entries` to the prefixes and take `settings_for` all.
    """

    prefixes: dict[bytes, bytes]
    identities: dict[bytes, bytes]
    pairs: frozenset[int]
    settings: bytes

    def settings_for(self, prefixes: Iterable[bytes]) -> bytes:
        """The settings with the lengths of these keys: those of old and new while entries change. Raises HostError."""
        return self.settings[: maps.VERIFY_SETTINGS_LOCAL4_AT] + b"".join(lengths(prefixes, VERIFY_SCOPES))


def diff(have: Mapping[bytes, bytes], want: Mapping[bytes, bytes]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """(keys to delete, entries to set) so that a map holds what is wanted."""
    return [key for key in have if key not in want], [(k, v) for k, v in want.items() if have.get(k) != v]


# -- stamping ------------------------------------------------------------


def stamp_entries(table: StampTable, unstamped: Sequence[str], forwarded: int, run_ns: int) -> StampEntries:
    """`forwarded`: the packet mark of forwarded packets that are stamped, 0 for none.

    `unstamped` are prefixes of networks for which this host stamps nothing: what they send to peers is only counted.

    Raises HostError for more prefix lengths than the program knows.
    """
    networks, peers = by_numeric(table.networks), by_numeric(table.peers)
    pairs: dict[tuple[int, int | None], int] = {(p.network, p.peer): p.pair for p in table.pairs}
    prefixes = {prefix_key(maps.SCOPE_LOCAL, p): prefix_value(number) for p, number in networks.items()}
    reached = destinations(peers, by_numeric(table.limits))
    for number in set(networks.values()):
        prefixes |= routes(number, reached, pairs)
    silent = outside(map(numeric, unstamped), networks)
    if silent:
        number = SHARED
        prefixes |= {prefix_key(maps.SCOPE_LOCAL, p): prefix_value(number) for p in silent}
        prefixes |= {prefix_key(maps.SCOPE_ROUTE + number, p): prefix_value(maps.NO_PAIR, IP_MAX) for p in peers}
    settings = maps.STAMP_SETTINGS.pack(run_ns, forwarded, 0, *lengths(prefixes, STAMP_SCOPES))
    return StampEntries(prefixes, settings)


class Destination(NamedTuple):
    """A prefix that is a peer's or has a path MTU of its own, and the longest other one around it."""

    prefix: NumericPrefix
    around: NumericPrefix | None
    peer: int | None
    mtu: int


def destinations(peers: Mapping[NumericPrefix, int], limits: Mapping[NumericPrefix, int]) -> list[Destination]:
    """Peers and path MTUs merged; what covers comes before what is covered."""
    merged: dict[NumericPrefix, Destination] = {}
    for prefix, around in nested(peers.keys() | limits.keys()):
        peer, mtu = (merged[around].peer, merged[around].mtu) if around else (None, IP_MAX)
        if prefix in limits:
            mtu = min(limits[prefix] or IP_MAX, IP_MAX)
        merged[prefix] = Destination(prefix, around, peers.get(prefix, peer), mtu)
    return list(merged.values())


def routes(
    network: int, reached: Iterable[Destination], pairs: Mapping[tuple[int, int | None], int]
) -> dict[bytes, bytes]:
    """One network's entries. Peers without a pair get one only inside another's prefix: their packets are not its."""
    numbers: dict[NumericPrefix | None, int] = {}
    made = {}
    for prefix, around, peer, mtu in reached:
        pair = pairs.get((network, peer))
        if pair is not None or around in numbers:
            numbers[prefix] = maps.NO_PAIR if pair is None else pair
            made[prefix_key(maps.SCOPE_ROUTE + network, prefix)] = prefix_value(numbers[prefix], mtu)
    return made


def pair_flags(pair: StampPair) -> int:
    """The pair's flags and, beside them, by how many bytes its packets grow."""
    return (
        maps.PAIR_SENDER * pair.sender_bound
        | maps.PAIR_IPV6_FRAGMENTS * pair.ipv6_fragments
        | CARRIERS[pair.carrier4].overhead << maps.PAIR_OVERHEAD4
        | CARRIERS[pair.carrier6].overhead << maps.PAIR_OVERHEAD6
    )


def with_flags(value: bytes, pair: StampPair) -> bytes:
    """A struct scent_outgoing with the flags that its pair has now."""
    at = maps.OUTGOING_FLAGS_AT
    return value[:at] + PAIR.pack(pair_flags(pair)) + value[at + PAIR.size :]


def outgoing_entry(pair: StampPair, out: Outgoing, monotonic_offset: float) -> tuple[bytes, bytes]:
    """A pair's new epoch: its key, and a struct scent_outgoing of which nothing has been sent.

    `monotonic_offset` is Unix time minus CLOCK_MONOTONIC, in seconds.
    """
    run_until = sent = index = 0
    heads = [tag.head(0, out.glance, out.key_id, out.epoch, i, f) for i, f in enumerate(out.fragments)]
    value = maps.OUTGOING.pack(
        *key_words(out.tag_key),
        max(nanoseconds(out.expires - monotonic_offset), 0),  # negative: it expired before the host booted
        run_until,
        int.from_bytes(heads[0][:8], sys.byteorder),  # as a load from memory gives it
        sent,
        index,
        out.epoch,
        pair_flags(pair),
        b"".join(head[8:].ljust(maps.PIECE_SIZE, b"\0") for head in heads),
    )
    return PAIR.pack(pair.pair), value


# -- verifying -----------------------------------------------------------


def verify_entries(table: VerifyTable, local_addresses: Sequence[str], marks: Marks) -> VerifyEntries:
    """`local_addresses` are the host's own: they stand for a network without addresses.

    Raises HostError for more prefix lengths or more pairs of one key id than the program knows.
    """
    # By the first pair: such a number is never another peer's, not even while entries change.
    peers: dict[tuple[bytes, tuple[str, ...]], int] = {}
    for incoming in table.incoming:
        peers.setdefault((incoming.key_id, incoming.peer), incoming.pair)
    networks = {network: i for i, network in enumerate(dict.fromkeys(i.network for i in table.incoming))}
    first: dict[tuple[str, ...], int] = {}
    for incoming in table.incoming:
        first[incoming.network] = min(first.get(incoming.network, incoming.pair), incoming.pair)
    local, numbers = destinations_of(list(networks), [1 + first[n] for n in networks], local_addresses)
    prefixes = {prefix_key(maps.SCOPE_LOCAL, p): prefix_value(number) for p, number in local.items()}
    for (_, addresses), number in peers.items():
        prefixes |= {prefix_key(maps.SCOPE_MEMBER + number, numeric(a)): prefix_value(number) for a in addresses}
    prefixes |= sources(table)
    settings = maps.VERIFY_SETTINGS.pack(
        *map(nanoseconds, (table.max_age, table.max_future, table.grace)),
        *marks,
        treatment_bits(table.default, table.default.absent != "pass"),
        *lengths(prefixes, VERIFY_SCOPES),
    )
    values: list[list[tuple[int, bytes, bytes]]] = [[] for _ in networks]
    for order, i in enumerate(table.incoming):
        entry = order, i.key_id, incoming_value(i, peers[i.key_id, i.peer])
        values[networks[i.network]].append(entry)
    # Number 0 is no network: there it is only asked whether a key is known at all.
    identities = {
        maps.IDENTITY.pack(i.key_id, 0, 0): incoming_value(i, peers[i.key_id, i.peer]) for i in table.incoming
    }
    for group, number in numbers.items():
        identities |= candidates(number, sorted(chain.from_iterable(values[i] for i in group)))
    return VerifyEntries(prefixes, identities, frozenset(i.pair for i in table.incoming), settings)


def destinations_of(
    networks: Sequence[tuple[str, ...]], own: Sequence[int], local_addresses: Sequence[str]
) -> tuple[dict[NumericPrefix, int], dict[frozenset[int], int]]:
    """(number by local prefix, number by the networks that it lies in, as indices).

    `own` are the networks' numbers, which last over reloads. Where networks overlap, a scent may be of any of them, so
    what they share has a number of its own.
    """
    numbers = {frozenset((i,)): number for i, number in enumerate(own)}
    owners: dict[NumericPrefix, set[int]] = {}
    for i, network in enumerate(networks):
        for text in network or local_addresses:
            owners.setdefault(numeric(text), set()).add(i)
    groups: dict[NumericPrefix, frozenset[int]] = {}
    for prefix, around in nested(owners):
        groups[prefix] = frozenset(owners[prefix]) | (groups[around] if around else frozenset())
        numbers.setdefault(groups[prefix], SHARED + len(numbers))
    return {prefix: numbers[group] for prefix, group in groups.items()}, numbers


def candidates(number: int, incoming: Iterable[tuple[int, bytes, bytes]]) -> dict[bytes, bytes]:
    """The identities of one network number, from (order, key id, value); the first of a key id is asked first."""
    known: Counter[bytes] = Counter()
    made = {}
    for _, key_id, value in incoming:
        if known[key_id] == maps.CANDIDATES:
            raise HostError(
                f"network.addresses: the offload tells {maps.CANDIDATES} pairs with peers of key id {key_id.hex()} "
                f"apart; let fewer networks share addresses; {QUEUE_INSTEAD}"
            )
        made[maps.IDENTITY.pack(key_id, number, known[key_id])] = value
        known[key_id] += 1
    return made


def incoming_value(incoming: Incoming, peer: int) -> bytes:
    """A struct scent_incoming, from keys of three periods in a row."""
    periods = sorted(incoming.tag_keys)
    return maps.INCOMING.pack(
        incoming.pair,
        peer,
        maps.PAIR_SENDER * incoming.sender_bound,
        periods[maps.PERIODS // 2],
        *chain.from_iterable(key_words(incoming.tag_keys[p]) for p in periods),
        *chain.from_iterable(key_words(incoming.glance_keys[p]) for p in periods),
    )


def sources(table: VerifyTable) -> dict[bytes, bytes]:
    """What becomes of senders' packets. Unscented ones are judged of verified peers, or of everybody."""
    treatments = by_numeric(table.treatments)
    verified = set(map(numeric, set(chain.from_iterable(i.peer for i in table.incoming))))
    treated_as: dict[NumericPrefix, tuple[Treatments, bool]] = {}
    for prefix, around in nested(treatments.keys() | verified):
        treated, expected = treated_as[around] if around else (table.default, table.default.absent != "pass")
        treated_as[prefix] = treatments.get(prefix, treated), expected or prefix in verified
    return {prefix_key(maps.SCOPE_SOURCE, p): prefix_value(0, treatment_bits(*f)) for p, f in treated_as.items()}


def treatment_bits(treatments: Treatments, expected: bool) -> int:
    return (
        TREATMENTS[treatments.rejected] << maps.TREATMENTS_REJECTED
        | TREATMENTS[treatments.absent] << maps.TREATMENTS_ABSENT
        | TREATMENTS[treatments.absent_ipv6_fragment] << maps.TREATMENTS_ABSENT_IPV6_FRAGMENT
        | expected << maps.TREATMENTS_EXPECTED
    )


def quarantine_entries(releases: Mapping[str, int]) -> dict[bytes, bytes]:
    """`releases`: the CLOCK_MONOTONIC second of each prefix. Inside a longer quarantine nobody is released earlier."""
    seconds = by_numeric(releases.items())
    latest: dict[NumericPrefix, int] = {}
    for prefix, around in nested(seconds):
        latest[prefix] = max(seconds[prefix], latest[around] if around else 0)
    return {prefix_key(maps.SCOPE_QUARANTINE, p): prefix_value(second) for p, second in latest.items()}


# -- keys and values -----------------------------------------------------


def prefix_key(scope: int, prefix: NumericPrefix) -> bytes:
    version, address, length = prefix
    return maps.PREFIX.pack(scope, version, length, address.to_bytes(BITS[version] // 8, "big"))


def prefix_value(number: int, detail: int = 0) -> bytes:
    return maps.PREFIX_VALUE.pack(number, detail)


def lengths(prefixes: Iterable[bytes], scopes: Sequence[int]) -> list[bytes]:
    """The struct scent_lengths of each scope, IPv4 and IPv6, from keys. Raises HostError for too many."""
    used: dict[tuple[int, int], set[int]] = {(scope, version): set() for scope in scopes for version in BITS}
    for head in {key[: maps.PREFIX_ADDRESS_AT] for key in prefixes}:
        scope, version, bits, _ = maps.PREFIX.unpack(head.ljust(maps.PREFIX_SIZE, b"\0"))
        used[next((s for s in (maps.SCOPE_MEMBER, maps.SCOPE_ROUTE) if scope >= s), scope), version].add(bits)
    for (scope, version), bits in used.items():
        if len(bits) > maps.LENGTHS_MAX:
            raise HostError(
                f"{SETTINGS[scope]}: IPv{version} prefixes of {len(bits)} different lengths, and the offload knows "
                f"{maps.LENGTHS_MAX}; use fewer; {QUEUE_INSTEAD}"
            )
    return [maps.LENGTHS.pack(len(bits), bytes(sorted(bits, reverse=True))) for bits in used.values()]


def key_words(key: bytes) -> tuple[int, ...]:
    """A SipHash key of 16 bytes as it is read on any host: two little-endian words."""
    return Struct("<2Q").unpack(key)


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
