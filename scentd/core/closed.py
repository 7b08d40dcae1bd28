"""What the guard keeps closed: whose packets may not come in unless they were verified. Pure.

With `verify.fail = "closed"` the packets of a strict peer, one with `absent` "drop" or "reject", come in only if the
packet path let them: it leaves the mark `datapath.mark_verified` on them. The guard drops the others, whatever happens
to the daemon and to its rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from msgspec import Struct

from scentd.prefix import BITS, NumericPrefix, nesting, owners

if TYPE_CHECKING:  # the guard reads the document, and has no configuration
    from scentd.config.sections import Config

ANY: tuple[NumericPrefix, ...] = ((4, 0, 0), (6, 0, 0))
ADDRESS = {4: IPv4Address, 6: IPv6Address}
Range = tuple[int, int, int]  # IP version, first and last address as numbers


class OpenException(Struct, frozen=True):
    """Packets that come in while nobody verifies.

    `direction` "in": to this host's `port`. "out": answers from the other end's `port` to what this host has sent.
    """

    prefix: str
    protocol: str  # tcp, udp
    port: int
    direction: str


class Closed(Struct, frozen=True):
    """The document that the guard takes its orders from. It lies in `daemon.state_dir`, so that it survives a boot."""

    mark: int  # on packets that were verified
    strict: tuple[Range, ...]  # of sources, ascending, apart from each other
    networks: tuple[str, ...] = ()  # destinations: prefixes of our networks
    whole_host: bool = False  # and every address of this host
    exceptions: tuple[OpenException, ...] = ()
    overload_open: bool = False  # a full queue lets packets in: what is closed is so only while nobody verifies


def closed(config: Config) -> Closed | None:
    """The guard's orders; None if nothing is to be kept closed."""
    if config.verify.fail != "closed":
        return None
    strict = dict.fromkeys(ANY, config.verify.absent != "pass")
    is_strict = [peer.verify and peer.absent != "pass" for peer in config.peer]
    for prefix, peers in owners([peer.addresses for peer in config.peer]):
        strict[prefix] = any(is_strict[i] for i in peers)
    ranges = tuple(merged(sorted(strict_ranges(strict))))
    if not ranges:
        return None
    return Closed(
        mark=config.datapath.mark_verified,
        strict=ranges,
        networks=tuple(a for n in config.network for a in n.addresses),
        whole_host=any(n.is_whole_host for n in config.network) or not config.network,
        exceptions=tuple(OpenException(e.prefix, e.protocol, e.port, e.direction) for e in config.guard.exception),
        overload_open=config.verify.overload == "open",
    )


def in_both(one: Closed | None, other: Closed | None) -> Closed | None:
    """What two orders keep closed alike: for the time between them, when no packet may meet half of a change."""
    if one is None or other is None or one.mark != other.mark:
        return None
    common = [n for n in one.networks if n in other.networks]
    both = Closed(
        mark=other.mark,
        strict=tuple(overlap(one.strict, other.strict)),
        networks=tuple(common),
        whole_host=one.whole_host and other.whole_host,
        exceptions=other.exceptions,
        overload_open=one.overload_open or other.overload_open,
    )
    return both if both.strict else None


def overlap(one: Iterable[Range], other: Iterable[Range]) -> Iterator[Range]:
    """The addresses in both of two ascending lists of ranges."""
    left, right = iter(one), iter(other)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        first, last = max(a[:2], b[:2]), min((a[0], a[2]), (b[0], b[2]))
        if first[0] == last[0] and first <= last:
            yield first[0], first[1], last[1]
        if (a[0], a[2]) < (b[0], b[2]):
            a = next(left, None)
        else:
            b = next(right, None)


def strict_ranges(strict: Mapping[NumericPrefix, bool]) -> Iterator[Range]:
    """The addresses whose longest prefix is a strict one."""
    inner: dict[NumericPrefix | None, list[NumericPrefix]] = {}
    for prefix, outer in nesting(strict):
        inner.setdefault(outer, []).append(prefix)
    for prefix, is_strict in strict.items():
        if not is_strict:
            continue
        version, at, end = ends(prefix)
        for _, first, last in sorted(map(ends, inner.get(prefix, ()))):
            if first > at:
                yield version, at, first - 1
            at = last + 1
        if at <= end:
            yield version, at, end


def ends(prefix: NumericPrefix) -> Range:
    version, first, length = prefix
    return version, first, first + (1 << BITS[version] - length) - 1


def merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ascending ranges, with neighbours made one."""
    current: Range | None = None
    for version, first, last in ranges:
        if current is not None and current[0] == version and first <= current[2] + 1:
            current = version, current[1], max(current[2], last)
            continue
        if current is not None:
            yield current
        current = version, first, last
    if current is not None:
        yield current


def range_text(addresses: Range) -> str:
    """As nft(8) takes it: "10.0.0.0-10.0.0.255", or one address."""
    version, first, last = addresses
    made: Iterable[str] = (str(ADDRESS[version](n)) for n in (first, last))
    return "-".join(dict.fromkeys(made))
