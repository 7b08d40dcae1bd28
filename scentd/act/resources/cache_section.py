"""The section of `cache`: where the origin and its edges are, how an edge is measured and warmed."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from scentd.act.resources.steer_table import End, parse_end
from scentd.config.resource import Resource
from scentd.config.schema import Name, Table, check_positive, check_prefixes, duplicates
from scentd.config.units import Seconds
from scentd.prefix import Prefix, within

EXAMPLE = 'write addresses with ports, such as "192.0.2.1:80" or "[2001:db8::1]:80"'


class CacheEdge(Table, kw_only=True):
    """A cache near to networks. An HTTP server that fetches what it lacks from the origin."""

    name: Name
    address: list[str]  # where it listens: one for each IP version
    region: str = ""
    prefixes: list[str] = []  # whom it serves; default: everybody

    def mistakes(self, path: str) -> list[str]:
        return [*check_ends(self.address, f"{path}.address"), *check_prefixes(self.prefixes, f"{path}.prefixes")]

    @property
    def ends(self) -> dict[int, End]:
        """By IP version."""
        return by_version(self.address)

    def serves(self, prefix: Prefix) -> bool:
        return not self.prefixes or any(within(prefix, ip_network(outer)) for outer in self.prefixes)


class CacheResource(Resource, tag_field="kind", tag="cache", kw_only=True):
    """1: the network's new connections to the origin are led to an edge that is closer; 0: they go to the origin."""

    maximum: float = 1.0
    provide: Seconds = 30.0
    on_exit: Literal["keep", "give-back"] = "give-back"  # nobody else would notice that an edge has died

    origin: list[str]  # what the clients connect to: one for each IP version
    edge: list[CacheEdge]
    site: str = ""  # the Host header of requests; default: the first origin
    check: str = "/"  # a path that the edges keep; asked for at each look, and measured if no other is known
    probe: dict[str, str] = {}  # by peer an address and port of it, to which the round trip is measured
    access_log: str = ""  # the origin's, in the combined format; default: nothing is fetched beforehand
    log_bytes: Annotated[int, Meta(ge=10_000, le=100_000_000)] = 4_000_000  # of its end are read
    warm_objects: Annotated[int, Meta(ge=1, le=10_000)] = 100
    warm_bytes: Annotated[int, Meta(ge=1, le=10_000_000_000)] = 100_000_000
    warm_timeout: Seconds = 20.0
    answer_timeout: Seconds = 2.0  # for one connect, one look, one measured object
    tries: Annotated[int, Meta(ge=1, le=20)] = 3  # measurements; their median counts
    must_fall: float = 0.1  # the share by which the measured time must fall
    retry_after: Seconds = 600.0  # for so long an edge that was not closer is not tried again

    def regions(self) -> Sequence[str]:
        return [edge.region for edge in self.edge if edge.region]

    def mistakes(self, path: str) -> list[str]:
        problems = [*super().mistakes(path), *check_ends(self.origin, f"{path}.origin")]
        problems += check_positive(self, path, "warm_timeout", "answer_timeout", "retry_after")
        problems += duplicates(f"{path}.edge", [edge.name for edge in self.edge])
        if self.maximum > 1:
            problems.append(f"{path}.maximum: is above 1; a network is led to an edge (1) or not (0)")
        if not self.edge:
            problems.append(f"{path}.edge: there is none; begin one with [[resource.edge]]")
        if not 0 <= self.must_fall < 1:
            problems.append(f"{path}.must_fall: is a share; write 0.1 for a tenth")
        if not self.check.startswith("/") or not is_word(self.check):
            problems.append(f"{path}.check: write a path, such as /logo.png")
        if self.site and not is_word(self.site):
            problems.append(f"{path}.site: write a name as in the Host header, such as www.example.org")
        if self.access_log and not Path(self.access_log).is_absolute():
            problems.append(f"{path}.access_log: write it from the root on, such as /var/log/nginx/access.log")
        for peer, end in self.probe.items():
            problems += check_ends([end], f"{path}.probe.{peer}")
        if not problems:
            problems += self.clashes(path)
        return problems

    def clashes(self, path: str) -> list[str]:
        """Mistakes between origin and edges, all of which can be read."""
        origins, seen, problems = set(self.origins.values()), dict[End, str](), []
        for i, edge in enumerate(self.edge):
            for end in edge.ends.values():
                if end in origins:
                    problems.append(f"{path}.edge[{i}].address: {end} is the origin; name the edge's own")
                elif end in seen:
                    problems.append(f"{path}.edge[{i}].address: {end} is that of {seen[end]}, too; leave one out")
                seen[end] = edge.name
            if not edge.ends.keys() & self.origins.keys():
                problems.append(f"{path}.edge[{i}].address: has no IP version of the origin; add one")
        return problems

    @property
    def origins(self) -> dict[int, End]:
        """By IP version."""
        return by_version(self.origin)

    @property
    def host_header(self) -> str:
        return self.site or self.origin[0].removesuffix(":80")  # as clients write it


def by_version(texts: Sequence[str]) -> dict[int, End]:
    return {end.address.version: end for end in map(parse_end, texts)}


def check_ends(texts: Sequence[str], path: str) -> list[str]:
    versions = []
    for text in texts:
        try:
            versions.append(parse_end(text).address.version)
        except ValueError as error:
            return [f"{path}: {error}; {EXAMPLE}"]
    if not versions or len(versions) != len(set(versions)):
        return [f"{path}: needs one address, or one for each IP version; {EXAMPLE}"]
    return []


def is_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
