"""Brings a cache closer to a network: an edge near to it answers in the origin's place.

The edge is chosen (core/allocate/edges.py), filled with what the network asks for most (hot_objects.py), and measured
against the origin (edge_http.py); only one that is closer gets the network's new connections, by a table in the kernel
(steer_table.py). The measuring comes first, so nobody is led to an edge that is slower or answers something else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NoReturn

from scentd.act.resources import edge_http, hot_objects, steer_table
from scentd.act.resources.backend import Backend, BackendSetting, Refused
from scentd.act.resources.cache_section import CacheEdge, CacheResource
from scentd.act.resources.steer_table import End
from scentd.act.resources.steering import Steering, remove_tables
from scentd.config.resource import Resource
from scentd.config.schema import kind_of
from scentd.core.allocate import edges
from scentd.errors import HostError
from scentd.prefix import Address, Prefix, PrefixMap, first_owners

log = logging.getLogger(__name__)

HALF = 0.5  # only some of a peer's prefixes are led there, or the rules are not whole
MEASURED = 3  # objects; so many of the hottest are timed
MEASURED_BYTES = 256 * 1024  # of each of them
LEGS = 2  # round trips of an object: the connection's and the request's
AT_ONCE = 8  # edges that are asked at the same time


class CacheBackend(Backend[CacheResource]):
    section = CacheResource

    def __init__(self, resource: CacheResource, setting: BackendSetting) -> None:
        super().__init__(resource, setting)
        self._origins, self._site = resource.origins, resource.host_header
        self._own = {peer: tuple(own) for peer, own in first_owners(setting.peers).items() if own}
        self._edge_of = {end: edge for edge in resource.edge for end in edge.ends.values()}
        known = [prefix for own in self._own.values() for prefix in own]
        self._steering = Steering(resource.name, known, self._origins, self._edge_of)
        self._closer: dict[str, CacheEdge] = {}  # by peer an edge that was found to be closer, for a quick repair
        self._not_closer: dict[tuple[str, str], tuple[float, str]] = {}  # by peer and edge: until when, why

    # -- what is there --------------------------------------------------------

    def observe(self) -> Mapping[str, float]:
        """Peers that are led to an edge which answers. A dead edge's are led to the origin again."""
        led = self._without_dead(self._steering.read())
        return {peer: self._amount(peer, led) for peer in self._own}

    def _amount(self, peer: str, led: Mapping[Prefix, End]) -> float:
        there = {prefix: led[prefix] for prefix in self._own[peer] if prefix in led}
        edge = self._edge_of.get(next(iter(there.values()))) if there else None
        if edge is None or there != self._led(peer, edge) or not self._steering.is_whole:
            return HALF * bool(there)
        self._closer[peer] = edge
        return 1.0

    def _without_dead(self, led: dict[Prefix, End]) -> dict[Prefix, End]:
        used = {edge.name: edge for end in led.values() if (edge := self._edge_of.get(end)) is not None}
        dead = {edge.name for edge, alive in self._ask(list(used.values())) if not alive}
        if not dead:
            return led
        name, names = self.resource.name, ", ".join(sorted(dead))
        self._closer = {peer: edge for peer, edge in self._closer.items() if edge.name not in dead}
        left = {p: end for p, end in led.items() if end not in self._edge_of or self._edge_of[end].name not in dead}
        self._steering.set(left)
        self.setting.tally.add("cache_edges_lost", len(dead))
        log.warning("resource %s: edge %s does not answer; its networks go to the origin", name, names)
        return self._steering.read()

    def _ask(self, candidates: Sequence[CacheEdge]) -> list[tuple[CacheEdge, bool]]:
        """Whether each answers, at every address."""

        def alive(edge: CacheEdge) -> bool:
            ends = [end for version, end in edge.ends.items() if version in self._origins]
            return all(edge_http.answers(end, self._site, resource.check, resource.answer_timeout) for end in ends)

        resource = self.resource
        if not candidates:
            return []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(zip(candidates, pool.map(alive, candidates), strict=True))

    def _led(self, peer: str, edge: CacheEdge) -> dict[Prefix, End]:
        """What the maps must hold for the peer to be led to the edge."""
        ends = {v: end for v, end in edge.ends.items() if v in self._origins}
        return {p: ends[p.version] for p in self._own[peer] if p.version in ends and edge.serves(p)}

    # -- changes --------------------------------------------------------------

    def change(self, peer: str, amount: float) -> None:
        if peer not in self._own:
            raise Refused(
                f"resource {self.resource.name}: peer {peer} has no addresses of its own; give it [[peer]].addresses "
                "that no peer before it has, or name other peers in the resource"
            )
        led: dict[Prefix, End] = {}
        if amount >= 1:
            edge = self._closer.get(peer)
            if edge is None or not self._ask([edge])[0][1]:
                edge = self._find_closer(peer)
            led = self._led(peer, edge)
            self._closer[peer] = edge
        else:
            self._closer.pop(peer, None)
        others = {p: end for p, end in self._steering.read().items() if p not in self._own[peer]}
        anew = self._steering.set({**{p: end for p, end in others.items() if end in self._edge_of}, **led})
        self.setting.tally.add("cache_built", anew)

    def _find_closer(self, peer: str) -> CacheEdge:
        """An edge that was warmed and measured to be closer. Raises HostError or Refused."""
        edge = self._choose(peer)
        paths = self._hot_paths(peer)
        ends = {v: end for v, end in edge.ends.items() if any(v == p.version for p in self._led(peer, edge))}
        resource = self.resource
        bounds = resource.warm_bytes, resource.warm_timeout, resource.answer_timeout
        objects, size = edge_http.warm(
            next(iter(ends.values())), self._site, paths or [resource.check], *bounds, self.setting.closing
        )
        self.setting.tally.add("cache_warmed_objects", objects)
        self.setting.tally.add("cache_warmed_bytes", size)
        leg = self._leg(peer, edge) or 0.0
        for version, end in ends.items():
            self._verify(peer, edge, (self._origins[version], end), paths[:MEASURED] or [resource.check], leg)
        return edge

    def _verify(self, peer: str, edge: CacheEdge, ends: tuple[End, End], paths: Sequence[str], leg: float) -> None:
        """Raise unless the edge gives what the origin gives, and together sooner. `leg`: seconds to the network."""
        before = after = leg * len(paths) * LEGS
        for path in paths:
            seconds_before, status_before = self._timed(ends[0], path)
            seconds_after, status_after = self._timed(ends[1], path)
            if status_after is None:
                raise HostError(f"resource {self.resource.name}: edge {edge.name} does not give {path} at {ends[1]}")
            if status_before is None:
                return  # there is nothing to be closer than
            if status_before != status_after:
                self._refuse(
                    peer,
                    edge,
                    f"edge {edge.name} answers {status_after} where the origin answers {status_before}, for {path} of "
                    f"{self._site}; check the edge's virtual host, its upstream, and `site`",
                )
            before, after = before + seconds_before, after + seconds_after
        if not edges.is_closer(before, after, self.resource.must_fall):
            self._refuse(
                peer,
                edge,
                f"edge {edge.name} did not get closer: {after * 1e3:.3g} ms for {', '.join(paths)} at {ends[1]} "
                f"instead of {before * 1e3:.3g} ms; name an edge that is nearer, a path in `check` that it keeps, or "
                "a smaller `must_fall`",
            )

    def _timed(self, end: End, path: str) -> tuple[float, int | None]:
        """(median seconds, status) of an object over a new connection; (0, None) if it does not come."""
        got = []
        for _ in range(self.resource.tries):
            self.wait(0)
            answer = edge_http.fetch(end, self._site, path, self.resource.answer_timeout, MEASURED_BYTES)
            if answer is None:
                return 0.0, None
            got.append(answer)
        return median(answer.seconds for answer in got), got[-1].status

    def _refuse(self, peer: str, edge: CacheEdge, why: str) -> NoReturn:
        text = f"resource {self.resource.name}: {why}"
        self._not_closer[peer, edge.name] = time.monotonic() + self.resource.retry_after, text
        self.setting.tally.add("cache_not_closer")
        raise Refused(text)

    # -- the choice -----------------------------------------------------------

    def _choose(self, peer: str) -> CacheEdge:
        suited = [edge for edge in self.resource.edge if self._led(peer, edge)]
        if not suited:
            raise Refused(
                f"resource {self.resource.name}: no edge has addresses of the IP version of peer {peer} and serves "
                "its prefixes; add one, or name other peers in the resource"
            )
        now = time.monotonic()
        self._not_closer = {key: one for key, one in self._not_closer.items() if one[0] > now}
        left = [edge for edge in suited if (peer, edge.name) not in self._not_closer]
        hurting = self.setting.hurting(peer)
        edge = edges.choose(left, hurting, self._round_trips(peer, left))
        if edge is not None:
            return edge
        failed = [text for (name, _), (_, text) in self._not_closer.items() if name == peer]
        if failed:
            raise Refused(failed[-1])
        if hurting and not any(edges.serves(one, hurting) for one in suited):
            raise Refused(
                f"resource {self.resource.name}: no edge serves {', '.join(hurting)}, where peer {peer} has a high "
                "latency; add one, or leave `region` out of an edge for all"
            )
        raise HostError(f"resource {self.resource.name}: no edge for peer {peer} answers")

    def _round_trips(self, peer: str, candidates: Sequence[CacheEdge]) -> dict[str, float]:
        """By edge the seconds from the network over this host, which is on the way, to the edge."""
        if not candidates:
            return {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ways = list(pool.map(lambda edge: self._way(next(iter(edge.ends.values()))), candidates))
            legs = list(pool.map(lambda edge: self._leg(peer, edge), candidates))
        if None in legs and peer in self.resource.probe:
            self.setting.tally.add("cache_probes_unanswered")
        known = [0.0 if None in legs else leg or 0.0 for leg in legs]
        found = zip(candidates, ways, known, strict=True)
        return {edge.name: way + leg for edge, way, leg in found if way is not None}

    def _way(self, end: End, source: Address | None = None) -> float | None:
        times = [
            edge_http.connect_seconds(end, self.resource.answer_timeout, source) for _ in range(self.resource.tries)
        ]
        got = [seconds for seconds in times if seconds is not None]
        return median(got) if got else None

    def _leg(self, peer: str, edge: CacheEdge) -> float | None:
        """Seconds from this host to the network; from the edge's own address where it is one of this host's."""
        if peer not in self.resource.probe:
            return None
        to = steer_table.parse_end(self.resource.probe[peer])
        at = edge.ends.get(to.address.version)
        return self._way(to, at.address if at is not None and edge_http.is_local(at.address) else None)

    def _hot_paths(self, peer: str) -> list[str]:
        if not self.resource.access_log:
            return []
        clients = PrefixMap((str(prefix), True) for prefix in self._own[peer])
        try:
            lines = hot_objects.last_lines(Path(self.resource.access_log), self.resource.log_bytes)
            return hot_objects.hottest(lines, clients, self._site, self.resource.warm_objects)
        except OSError as error:  # the edge fills itself, only more slowly
            self.setting.tally.add("cache_logs_unread")
            log.warning("resource %s: %s; nothing of it is fetched beforehand", self.resource.name, error)
            return []

    def close(self) -> None:
        self._steering.close()

    @classmethod
    def remove_all(cls) -> list[str]:
        return remove_tables(())

    @classmethod
    def sweep(cls, resources: Sequence[Resource]) -> list[str]:
        return remove_tables([r.name for r in resources if kind_of(r) == "cache"])

    @classmethod
    def notes(cls, resources: Sequence[CacheResource]) -> list[str]:
        found = [
            f"resource {r.name}: {r.access_log} is not there or cannot be read; nothing is fetched beforehand"
            for r in resources
            if r.access_log and not readable(Path(r.access_log))
        ]
        first: dict[End, str] = {}
        for r in resources:
            for end in r.origins.values():
                if first.setdefault(end, r.name) != r.name:
                    found.append(f"resource {r.name}: has the origin {end} of {first[end]}; only one of them leads it")
        return found


def readable(path: Path) -> bool:
    try:
        hot_objects.tail(path, 1)
    except OSError:
        return False
    return True
