"""From the tables of the packet path to keys and values of the BPF maps (bpf/scent_maps.h). Pure.

decode.py is the other direction. A program stops at the longest prefix that covers an address, as PrefixMap does. So
the value of a prefix also has to contain what the value of a shorter prefix around it says.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from struct import Struct
from typing import NamedTuple

from scentd.core.offload.destinations import Destination, merge_destinations, segments
from scentd.core.packet.stamp import IP_MAX
from scentd.core.tables import Incoming, IncomingKeys, Origin, StampPair, StampTable, Treatments, VerifyTable
from scentd.errors import HostError
from scentd.model import Outgoing
from scentd.prefix import BITS, NumericPrefix, by_numeric, nesting, numeric, remove_covered
from scentd.wire import layout, maps, tag
from scentd.wire.carrier import CARRIERS

SHARED_MIN = 1 << 28  # the first number of prefixes that several networks share; there are fewer pairs than that
PAIR = Struct("=I")  # the key of the maps by pair
QUEUE_INSTEAD = 'until then the queue does the work, as with datapath.offload = "off"'
# The scopes whose prefix lengths are in the settings, in the order of the structs, and the user's names of them.
STAMP_SCOPES = (maps.SCOPE_LOCAL, maps.SCOPE_ROUTE)
VERIFY_SCOPES = (maps.SCOPE_LOCAL, maps.SCOPE_SOURCE, maps.SCOPE_MEMBER, maps.SCOPE_QUARANTINE, maps.SCOPE_BARRED)
MANY = (maps.SCOPE_BARRED, maps.SCOPE_MEMBER, maps.SCOPE_ROUTE)  # the first of many scopes, highest first
SETTINGS = {
    maps.SCOPE_LOCAL: "network.addresses",
    maps.SCOPE_SOURCE: "peer.addresses, with the host's routes inside them",
    maps.SCOPE_MEMBER: "peer.addresses",
    maps.SCOPE_ROUTE: "peer.addresses, with the host's routes inside them",
    maps.SCOPE_QUARANTINE: "policy.do of kind quarantine",
    maps.SCOPE_BARRED: "policy.do of kind quarantine",
}
NO_STAMPS = StampTable()
TREATMENTS = {name: number for number, name in layout.TREATMENTS.items()}


class Marks(NamedTuple):
    """Bits of the packet mark: datapath.mark_verified and verify.mark_glance."""

    verified: int
    glance: int = 0


class StampEntries(NamedTuple):
    """The entries of the stamper's maps: struct scent_prefix -> scent_prefix_value; struct scent_stamp_settings."""

    prefixes: dict[bytes, bytes]
    settings: bytes

    def settings_for(self, prefixes: Iterable[bytes]) -> bytes:
        """The settings with the lengths of these keys: those of old and new while entries change. Raises HostError."""
        return self.settings[: maps.STAMP_SETTINGS_LOCAL4_AT] + b"".join(lengths(prefixes, STAMP_SCOPES))


class VerifyEntries(NamedTuple):
    """The entries of the verifier's maps: as above; struct scent_identity -> scent_incoming; numbers of pairs.

    Quarantined prefixes are not among them: the caller adds `quarantine_entries` and takes `settings_for` all prefixes.
    """

    prefixes: dict[bytes, bytes]
    identities: dict[bytes, bytes]
    pairs: frozenset[int]
    settings: bytes

    def settings_for(self, prefixes: Iterable[bytes]) -> bytes:
        """The settings with the lengths of these keys: those of old and new while entries change. Raises HostError."""
        return self.settings[: maps.VERIFY_SETTINGS_LOCAL4_AT] + b"".join(lengths(prefixes, VERIFY_SCOPES))


def diff(
    current: Mapping[bytes, bytes], desired: Mapping[bytes, bytes]
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """(keys to delete, entries to set), so that a map gets the desired entries."""
    return [key for key in current if key not in desired], [(k, v) for k, v in desired.items() if current.get(k) != v]


# -- stamping ------------------------------------------------------------


def stamp_entries(
    table: StampTable, unstamped: Sequence[str], forwarded: int, run_ns: int, own: Sequence[str] = ()
) -> StampEntries:
    """The entries for a table. `forwarded`: the mark of forwarded packets that a rule knows as ours; 0: stamp none.

    `unstamped`: prefixes of networks for which this host stamps nothing. Their packets to peers are only counted.
    `own`: this host's addresses. Behind one of them a forwarded packet may be anybody's.

    Raises HostError if there are more prefix lengths than the program supports.
    """
    networks, peers = by_numeric(table.networks), by_numeric(table.peers)
    pairs: dict[tuple[int, int | None], int] = {(p.network, p.peer): p.pair for p in table.pairs}
    local = dict(networks)
    destinations = merge_destinations(peers, by_numeric(table.limits))
    prefixes: dict[bytes, bytes] = {}
    for number in {p.network for p in table.pairs}:
        prefixes |= route_entries(number, destinations, pairs)
    silent = remove_covered(map(numeric, unstamped), networks)
    if silent:
        local |= dict.fromkeys(silent, SHARED_MIN)
        prefixes |= {prefix_key(maps.SCOPE_ROUTE + SHARED_MIN, p): prefix_value(maps.NO_PAIR, IP_MAX) for p in peers}
    prefixes |= local_entries(local, set(map(numeric, own)) if forwarded else set())
    masks = tuple(dict.fromkeys(origin.mask for origin in table.origins))
    if len(masks) > maps.MASKS_MAX:
        raise HostError(
            f"network.mark: {len(masks) - 1} different masks, and the offload supports {maps.MASKS_MAX - 1}; use one "
            f"mask for all networks; {QUEUE_INSTEAD}"
        )
    prefixes |= {origin_key(o): prefix_value(o.network) for o in table.origins}
    unused = (0,) * (maps.MASKS_MAX - len(masks))
    settings = maps.STAMP_SETTINGS.pack(
        run_ns, forwarded, len(masks), *masks, *unused, *lengths(prefixes, STAMP_SCOPES)
    )
    return StampEntries(prefixes, settings)


def origin_key(origin: Origin) -> bytes:
    return maps.PREFIX.pack(maps.SCOPE_ORIGIN, 0, 0, PAIR.pack(origin.mask) + PAIR.pack(origin.value))


def local_entries(local: Mapping[NumericPrefix, int], own: set[NumericPrefix]) -> dict[bytes, bytes]:
    """The networks' prefixes, and inside them the addresses of this host, which are told apart."""
    numbers: dict[NumericPrefix, int] = {}
    for prefix, outer in nesting(local.keys() | own):
        if prefix in local or outer in numbers:
            numbers[prefix] = local[prefix] if prefix in local else numbers[outer]  # type: ignore[index]
    return {prefix_key(maps.SCOPE_LOCAL, p): prefix_value(number, int(p in own)) for p, number in numbers.items()}


def route_entries(
    network: int, destinations: Iterable[Destination], pairs: Mapping[tuple[int, int | None], int]
) -> dict[bytes, bytes]:
    """One network's routes. A peer without a pair has an entry only inside the prefix of a peer with one: there the
    entry keeps its packets from the other peer's pair.
    """
    numbers: dict[NumericPrefix | None, int] = {}
    entries = {}
    for prefix, outer, peer, mtu in destinations:
        pair = pairs.get((network, peer))
        if pair is not None or outer in numbers:
            numbers[prefix] = maps.NO_PAIR if pair is None else pair
            entries[prefix_key(maps.SCOPE_ROUTE + network, prefix)] = prefix_value(numbers[prefix], mtu)
    return entries


def pair_flags(pair: StampPair) -> int:
    """The pair's flags and, beside them, the overheads of its packets."""
    return (
        maps.PAIR_SENDER * pair.sender_bound
        | maps.PAIR_IPV6_FRAGMENTS * pair.ipv6_fragments
        | CARRIERS[pair.carrier4].overhead << maps.PAIR_OVERHEAD4
        | CARRIERS[pair.carrier6].overhead << maps.PAIR_OVERHEAD6
    )


def with_flags(value: bytes, pair: StampPair) -> bytes:
    """A struct scent_outgoing with the current flags of its pair."""
    at = maps.OUTGOING_FLAGS_AT
    return value[:at] + PAIR.pack(pair_flags(pair)) + value[at + PAIR.size :]


def outgoing_entry(pair: StampPair, out: Outgoing, monotonic_offset: float) -> tuple[bytes, bytes]:
    """The entry of a pair's new epoch: key, and struct scent_outgoing before its first packet.

    `monotonic_offset` is Unix time minus CLOCK_MONOTONIC, in seconds.
    """
    run_until, *taken = (0,) * 4  # taken: how many were sent, the index, the first one of the round
    heads = [tag.head(0, 0, out.key_id, out.epoch, i, f) for i, f in enumerate(out.fragments)]
    pieces = (head[8:] + out.glances[i : i + 1] for i, head in enumerate(heads))
    value = maps.OUTGOING.pack(
        *key_words(out.tag_key),
        max(nanoseconds(out.expires - monotonic_offset), 0),  # negative: it expired before the host booted
        run_until,
        int.from_bytes(heads[0][:8], sys.byteorder),  # as a load from memory gives it
        *taken,
        out.epoch,
        pair_flags(pair),
        b"".join(piece.ljust(maps.PIECE_SIZE, b"\0") for piece in pieces),
    )
    return PAIR.pack(pair.pair), value


# -- verifying -----------------------------------------------------------


def verify_entries(
    table: VerifyTable, local_addresses: Sequence[str], marks: Marks, stamp: StampTable = NO_STAMPS
) -> VerifyEntries:
    """The entries for a table. `local_addresses`: the host's own, which a network without addresses gets; `stamp`: what
    this host stamps, which limits what the peers' SYNs may announce.

    Raises HostError if there are more prefix lengths, or more pairs of one key id, than the program supports.
    """
    # A peer has the number of its first pair. No other peer ever has that number, not even while entries change.
    peers: dict[tuple[tuple[bytes, ...], tuple[str, ...]], int] = {}
    for incoming in table.incoming:
        peers.setdefault(peer_of(incoming), incoming.pair)
    networks = {network: i for i, network in enumerate(dict.fromkeys(i.network for i in table.incoming))}
    first: dict[tuple[str, ...], int] = {}
    for incoming in table.incoming:
        first[incoming.network] = min(first.get(incoming.network, incoming.pair), incoming.pair)
    local, numbers = number_destinations(list(networks), [1 + first[n] for n in networks], local_addresses)
    prefixes = receiver_entries(local, by_numeric(stamp.networks).keys() if stamp.pairs else set())
    for (_, addresses), number in peers.items():
        prefixes |= {prefix_key(maps.SCOPE_MEMBER + number, numeric(a)): prefix_value(number) for a in addresses}
    prefixes |= source_entries(table, segments(stamp))
    settings = maps.VERIFY_SETTINGS.pack(
        *map(nanoseconds, (table.max_age, table.max_future, table.grace)),
        *marks,
        treatment_bits(table.default, table.default.absent != "pass"),
        0,
        *lengths(prefixes, VERIFY_SCOPES),
    )
    values: list[list[tuple[int, bytes, list[bytes]]]] = [[] for _ in networks]
    identities = {}
    for order, i in enumerate(table.incoming):
        peer = peers[peer_of(i)]
        for key_id, candidates in i.by_sender().items():
            made = [incoming_value(i, k, peer, len(candidates)) for k in candidates]
            values[networks[i.network]].append((order, key_id, made))
            # Number 0 is no network: the program looks there to learn whether a key is known at all.
            identities[maps.IDENTITY.pack(key_id, 0, 0)] = made[0]
    for group, number in numbers.items():
        identities |= candidate_entries(number, sorted(chain.from_iterable(values[i] for i in group)))
    return VerifyEntries(prefixes, identities, frozenset(i.pair for i in table.incoming), settings)


def peer_of(incoming: Incoming) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """What tells a pair's peer from others: its key ids, and its addresses."""
    return tuple(incoming.by_sender()), incoming.peer


def number_destinations(
    networks: Sequence[tuple[str, ...]], network_numbers: Sequence[int], local_addresses: Sequence[str]
) -> tuple[dict[NumericPrefix, int], dict[frozenset[int], int]]:
    """(number by local prefix, number by group of networks, a group as a set of indices).

    `network_numbers` last over reloads. Where networks overlap, a scent may belong to any of them, so each group of
    networks that share a prefix has a number of its own.
    """
    numbers = {frozenset((i,)): number for i, number in enumerate(network_numbers)}
    owners: dict[NumericPrefix, set[int]] = {}
    for i, network in enumerate(networks):
        for text in network or local_addresses:
            owners.setdefault(numeric(text), set()).add(i)
    groups: dict[NumericPrefix, frozenset[int]] = {}
    for prefix, outer in nesting(owners):
        groups[prefix] = frozenset(owners[prefix]) | (groups[outer] if outer else frozenset())
        numbers.setdefault(groups[prefix], SHARED_MIN + len(numbers))
    return {prefix: numbers[group] for prefix, group in groups.items()}, numbers


def receiver_entries(numbers: Mapping[NumericPrefix, int], stamped: Set[NumericPrefix]) -> dict[bytes, bytes]:
    """The prefixes for which packets come: the number of their network, 0 if nothing is verified for it; and whether
    packets from there to peers are stamped.
    """
    known: dict[NumericPrefix | None, tuple[int, int]] = {None: (0, 0)}
    for prefix, outer in nesting(numbers.keys() | stamped):
        number, is_stamped = known[outer]
        known[prefix] = numbers.get(prefix, number), int(is_stamped or prefix in stamped)
    return {prefix_key(maps.SCOPE_LOCAL, p): prefix_value(*value) for p, value in known.items() if p is not None}


def candidate_entries(number: int, incoming: Iterable[tuple[int, bytes, list[bytes]]]) -> dict[bytes, bytes]:
    """The identities of one network number, from (order, key id, a value for each key of ours).

    Pairs of one key id keep their order.
    """
    pairs: Counter[bytes] = Counter()
    identities = {}
    for _, key_id, values in incoming:
        if pairs[key_id] == maps.CANDIDATES:
            raise HostError(
                f"network.addresses: at one address the offload supports {maps.CANDIDATES} pairs with peers of key id "
                f"{key_id.hex()}; let fewer networks share addresses; {QUEUE_INSTEAD}"
            )
        for other, value in enumerate(values):
            identities[maps.IDENTITY.pack(key_id, number, pairs[key_id] + other * maps.CANDIDATES)] = value
        pairs[key_id] += 1
    return identities


def incoming_value(incoming: Incoming, keys: IncomingKeys, peer: int, own_keys: int) -> bytes:
    """A struct scent_incoming, from keys of three periods in a row. `own_keys`: how many keys our network has."""
    periods = sorted(keys.tag_keys)
    return maps.INCOMING.pack(
        incoming.pair,
        peer,
        maps.PAIR_SENDER * incoming.sender_bound | maps.PAIR_TWO_KEYS * (own_keys > 1),
        periods[maps.PERIODS // 2],
        *chain.from_iterable(key_words(keys.tag_keys[p]) for p in periods),
        *chain.from_iterable(key_words(keys.glance_keys[p]) for p in periods),
        keys.key_ids,
        0,
    )


def source_entries(table: VerifyTable, longest: Mapping[NumericPrefix, int]) -> dict[bytes, bytes]:
    """The treatments by sender, and the longest segment that its SYNs may announce. Unscented packets are judged if
    they come from a verified peer, or from anybody if the default treatment is not to pass them.
    """
    treatments = by_numeric(table.treatments)
    verified = set(map(numeric, set(chain.from_iterable(i.peer for i in table.incoming))))
    strangers = table.default, table.default.absent != "pass", 0
    treated_as: dict[NumericPrefix, tuple[Treatments, bool, int]] = {}
    for prefix, outer in nesting(treatments.keys() | verified | longest.keys()):
        treated, expected, segment = treated_as[outer] if outer else strangers
        treated_as[prefix] = (
            treatments.get(prefix, treated),
            expected or prefix in verified,
            longest.get(prefix, segment),
        )
    return {
        prefix_key(maps.SCOPE_SOURCE, p): prefix_value(
            treated.pair, treatment_bits(treated, expected) | segment << maps.TREATMENTS_SEGMENT
        )
        for p, (treated, expected, segment) in treated_as.items()
    }


def treatment_bits(treatments: Treatments, expected: bool) -> int:
    return (
        TREATMENTS[treatments.rejected] << maps.TREATMENTS_REJECTED
        | TREATMENTS[treatments.absent] << maps.TREATMENTS_ABSENT
        | TREATMENTS[treatments.absent_ipv6_fragment] << maps.TREATMENTS_ABSENT_IPV6_FRAGMENT
        | expected << maps.TREATMENTS_EXPECTED
    )


def quarantine_entries(releases: Mapping[str, int], scope: int = maps.SCOPE_QUARANTINE) -> dict[bytes, bytes]:
    """The entries of quarantined prefixes. `releases`: the CLOCK_MONOTONIC second of each prefix's release.

    A prefix inside another is released with the later of the two.
    """
    seconds = by_numeric(releases.items())
    latest: dict[NumericPrefix, int] = {}
    for prefix, outer in nesting(seconds):
        latest[prefix] = max(seconds[prefix], latest[outer] if outer else 0)
    return {prefix_key(scope, p): prefix_value(second) for p, second in latest.items()}


def barred_entries(releases: Mapping[int, Mapping[str, int]]) -> dict[bytes, bytes]:
    """The same by pair, of packets that are dropped once they were accepted."""
    entries: dict[bytes, bytes] = {}
    for pair, prefixes in releases.items():
        entries |= quarantine_entries(prefixes, maps.SCOPE_BARRED + pair)
    return entries


# -- keys and values -----------------------------------------------------


def prefix_key(scope: int, prefix: NumericPrefix) -> bytes:
    version, address, length = prefix
    return maps.PREFIX.pack(scope, version, length, address.to_bytes(BITS[version] // 8, "big"))


def prefix_value(number: int, detail: int = 0) -> bytes:
    return maps.PREFIX_VALUE.pack(number, detail)


def lengths(prefixes: Iterable[bytes], scopes: Sequence[int]) -> list[bytes]:
    """The struct scent_lengths of each scope, IPv4 and IPv6, from keys. Raises HostError for too many lengths."""
    used: dict[tuple[int, int], set[int]] = {(scope, version): set() for scope in scopes for version in BITS}
    for head in {key[: maps.PREFIX_ADDRESS_AT] for key in prefixes}:
        scope, version, bits, _ = maps.PREFIX.unpack(head.ljust(maps.PREFIX_SIZE, b"\0"))
        if version:  # an origin has none
            used[next((s for s in MANY if scope >= s), scope), version].add(bits)
    for (scope, version), bits in used.items():
        if len(bits) > maps.LENGTHS_MAX:
            raise HostError(
                f"{SETTINGS[scope]}: IPv{version} prefixes of {len(bits)} different lengths, and the offload supports "
                f"{maps.LENGTHS_MAX}; use fewer; {QUEUE_INSTEAD}"
            )
    return [maps.LENGTHS.pack(len(bits), bytes(sorted(bits, reverse=True))) for bits in used.values()]


def key_words(key: bytes) -> tuple[int, ...]:
    """A SipHash key of 16 bytes as two little-endian words, on any host."""
    return Struct("<2Q").unpack(key)


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
