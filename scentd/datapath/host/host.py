"""What the packet path has on the host: address sets, programs, routes, rules. Made in order, and taken away."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from scentd.config.sections import Config
from scentd.core.lowered_mtu import RoutePlan
from scentd.core.offload.coverage import Coverage
from scentd.datapath.host import routes, rules, sets
from scentd.datapath.host.watch import Watch
from scentd.datapath.offload.interfaces import in_place
from scentd.datapath.offload.offload import Offload, remove_offload
from scentd.errors import ScentdError

log = logging.getLogger(__name__)

Limits = tuple[tuple[str, int], ...]


class HostFacts(NamedTuple):
    """What the tables of the packet path have to know of the host."""

    limits: Limits = ()  # full path MTUs by prefix
    addresses: tuple[str, ...] = ()  # the host's own
    forward_lowered: bool = False  # forwarded packets, too, are held to the lowered MTUs


class Host:
    """Applies and removes; keeps our routes and programs in step with the host's routes and interfaces.

    `on_facts` is called on the loop thread when routes or addresses changed.
    `apply` and `remove` block and must not run on the loop's thread.
    """

    def __init__(self, config: Config, on_facts: Callable[[HostFacts], None]) -> None:
        self._on_facts = on_facts
        self._wanted = config  # what it was last told; what has been applied of it is `_config`
        self._loop = asyncio.get_running_loop()
        self._config: Config | None = None
        self._offload: Offload | None = None
        self._watch: Watch | None = None
        self._busy = threading.Lock()  # the watch, a reload and the stop are different threads
        self._removed = False

    def apply(self, config: Config, offload: Offload | None = None) -> HostFacts:
        """Make the host as the configuration wants it. Raises HostError."""
        with self._busy:
            if self._removed:  # a reload that the stop has overtaken
                return HostFacts()
            self._wanted = config
            facts = install(config, offload)
            self._config, self._offload = config, offload
        if self._watch is None:
            self._watch = Watch(config.datapath, self._replan)
            self._watch.start()
        return facts

    @property
    def applied(self) -> bool:
        return self._config is not None

    def check(self) -> None:
        """Put programs back that somebody else has taken off. Raises HostError."""
        with self._busy:
            if self._config is None or self._offload is None or self._removed or not self._offload.interfaces.lost():
                return
            log.warning("offload: somebody has taken programs of ours off; putting them back")
            follow(self._config, self._offload)

    def leave(self) -> None:
        """Leave everything as it is from now on."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        with self._busy:
            self._removed = True

    def remove(self) -> None:
        """Take everything away. Raises HostError."""
        self.leave()
        cleanup(self._wanted)

    def _replan(self) -> None:
        assert self._config is not None  # the watch is started after it is set
        try:
            with self._busy:
                if self._removed:
                    return
                facts = follow(self._config, self._offload)
        except ScentdError as error:
            log.error("routes to peers: %s", error)
            return
        self._loop.call_soon_threadsafe(self._on_facts, facts)


def planned(config: Config) -> HostFacts:
    """What `install` will find; touches nothing. Raises HostError."""
    return HostFacts(routes.planned(config).limits(), routes.own_addresses())


def install(config: Config, offload: Offload | None = None) -> HostFacts:
    """Make the host as the configuration wants it; doing it twice is harmless. Raises HostError."""
    sets.apply(config)
    return follow(config, offload)


def reinstall(config: Config) -> None:
    """Sets, routes and rules beside the programs that a daemon has in place, or none. Raises HostError."""
    sets.apply(config)
    write(config, routes.planned(config), served_now(config))


def follow(config: Config, offload: Offload | None) -> HostFacts:
    """Routes, programs and rules as the host's own routes and interfaces ask for.

    A program is there before the rules leave packets to it, and goes after they do not any more.
    """
    plan = routes.planned(config)
    served = None if offload is None else checked(config, plan, offload.attach(plan.interfaces()))
    limits, lowered = write(config, plan, served)
    if offload is not None:
        offload.interfaces.settle()
    return HostFacts(limits, routes.own_addresses(), lowered)


def checked(config: Config, plan: RoutePlan, served: Coverage) -> Coverage:
    """`rule_free` only where the routes allow it, too."""
    return served._replace(rule_free=served.rule_free and routes.may_be_rule_free(config, plan))


def write(config: Config, plan: RoutePlan, served: Coverage | None) -> tuple[Limits, bool]:
    """Routes and rules beside these programs: the paths' MTUs, and whether forwarded packets are held to lower ones.

    In an order in which packets that the queue has stamped find the routes that they need.
    """
    if served is not None and served.rule_free:
        rules.apply(config, served)
        return routes.apply(config, rule_free=True).limits(), True
    stamping = len(served.stamping) if served is not None else 0
    lowered = config.stamp.forwarded and 0 < stamping == len(plan.interfaces())
    limits = routes.apply(config, lowered).limits()
    rules.apply(config, served)
    return limits, lowered


def served_now(config: Config) -> Coverage | None:
    """What a daemon's programs serve now."""
    plan = routes.planned(config)
    served = in_place(config.datapath.pin_dir, plan.interfaces())
    return None if served is None else checked(config, plan, served)


def show(config: Config) -> str:
    """The rules, the sets and the lowered routes: wanted and there."""
    lines = [rules.show(config, served_now(config)), "# address sets\n"]
    for name, prefixes in sets.have().items():
        lines.append(f"{name}: {' '.join(sorted(map(str, prefixes))) or '-'}\n")
    lines.append(f"# lowered routes, in table {config.datapath.route_table} or local\n")
    for route in routes.have(config.datapath):
        lines.append(f"{route}\n")
    return "".join(lines)


def cleanup(config: Config) -> None:
    """Remove all that is ours; what is not there is fine. Raises HostError."""
    rules.remove()
    remove_offload(config.datapath.pin_dir)
    routes.remove(config.datapath)
    sets.remove()
