"""The packet path's parts on the host: address sets, programs, routes, rules. Made in order, and removed."""

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
from scentd.datapath.offload.interfaces import read_served
from scentd.datapath.offload.offload import Offload, remove_offload
from scentd.errors import ScentdError

log = logging.getLogger(__name__)

Limits = tuple[tuple[str, int], ...]


class HostFacts(NamedTuple):
    """The facts about the host that the tables of the packet path need."""

    limits: Limits = ()  # full path MTUs by prefix
    addresses: tuple[str, ...] = ()  # the host's own
    forward_lowered: bool = False  # the kernel applies the lowered MTUs to forwarded packets, too


class Host:
    """Makes and removes these parts; routes and programs of ours update the host's routes and interfaces.

    `on_facts` is called on the loop's thread after routes or addresses have changed.
    `apply` and `remove` block and must not run on the loop's thread.
    """

    def __init__(self, config: Config, on_facts: Callable[[HostFacts], None]) -> None:
        self._on_facts = on_facts
        self._target = config  # the newest configuration; `_config` is the one on the host
        self._loop = asyncio.get_running_loop()
        self._config: Config | None = None
        self._offload: Offload | None = None
        self._watch: Watch | None = None
        self._lock = threading.Lock()  # the watch, a reload and the stop run on different threads
        self._stopped = False

    def apply(self, config: Config, offload: Offload | None = None) -> HostFacts:
        """Make the host as the configuration wants it. Raises HostError."""
        with self._lock:
            if self._stopped:  # the stop came before this reload
                return HostFacts()
            self._target = config
            facts = install(config, offload)
            self._config, self._offload = config, offload
        if self._watch is None:
            self._watch = Watch(config.datapath, self._on_change)
            self._watch.start()
        return facts

    @property
    def applied(self) -> bool:
        return self._config is not None

    def check(self) -> None:
        """Put back the programs that somebody else has removed. Raises HostError."""
        with self._lock:
            if (
                self._config is None
                or self._offload is None
                or self._stopped
                or not self._offload.interfaces.is_incomplete()
            ):
                return
            log.warning("offload: somebody has removed programs of ours; putting them back")
            update(self._config, self._offload)

    def leave(self) -> None:
        """Change nothing on the host from now on."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        with self._lock:
            self._stopped = True

    def remove(self) -> None:
        """Remove everything. Raises HostError."""
        self.leave()
        cleanup(self._target)

    def _on_change(self) -> None:
        assert self._config is not None  # the watch is started after it is set
        try:
            with self._lock:
                if self._stopped:
                    return
                facts = update(self._config, self._offload)
        except ScentdError as error:
            log.error("routes to peers: %s", error)
            return
        self._loop.call_soon_threadsafe(self._on_facts, facts)


def read_facts(config: Config) -> HostFacts:
    """The facts that `install` will return, as far as they are known before it. Changes nothing. Raises HostError."""
    return HostFacts(routes.read_plan(config).limits(), routes.own_addresses())


def install(config: Config, offload: Offload | None = None) -> HostFacts:
    """Make the host as the configuration wants it; doing it twice is harmless. Raises HostError."""
    sets.apply(config)
    return update(config, offload)


def reinstall(config: Config) -> None:
    """Write sets, routes and rules again; they fit a daemon's attached programs. Raises HostError."""
    sets.apply(config)
    write(config, routes.read_plan(config), current_served(config))


def update(config: Config, offload: Offload | None) -> HostFacts:
    """Write the routes, programs and rules that the host's own routes and interfaces require.

    A program is attached before the rules leave packets to it, and detached after they send these to the queue again.
    Programs come first of all: on a rule-free host a new interface has nothing else that stamps its packets.
    """
    if offload is not None:
        offload.attach()
    plan = routes.read_plan(config)
    served = None if offload is None else restrict_rule_free(config, plan, offload.interfaces.cover(plan.interfaces()))
    limits, lowered = write(config, plan, served)
    if offload is not None:
        offload.interfaces.detach_unused()
    return HostFacts(limits, routes.own_addresses(), lowered)


def restrict_rule_free(config: Config, plan: RoutePlan, served: Coverage) -> Coverage:
    """Clear `rule_free` unless the routes allow it, too."""
    return served._replace(rule_free=served.rule_free and routes.may_be_rule_free(config, plan))


def write(config: Config, plan: RoutePlan, served: Coverage | None) -> tuple[Limits, bool]:
    """Write routes and rules to fit these programs. Return the paths' MTUs, and whether lowered ones bind forwarding.

    The order is such that packets that the queue has stamped find the routes that they need.
    """
    if served is not None and served.rule_free:
        rules.apply(config, served)
        return routes.apply(config, rule_free=True).limits(), True
    stamping = len(served.stamping) if served is not None else 0
    lowered = config.stamp.forwarded and 0 < stamping == len(plan.interfaces())
    limits = routes.apply(config, lowered).limits()
    rules.apply(config, served)
    return limits, lowered


def current_served(config: Config) -> Coverage | None:
    """The interfaces that a daemon's programs serve now; None without programs."""
    plan = routes.read_plan(config)
    served = read_served(config.datapath.pin_dir, plan.interfaces())
    return None if served is None else restrict_rule_free(config, plan, served)


def show(config: Config) -> str:
    """The rules, the sets and the lowered routes as text, and the difference from what the configuration requires."""
    lines = [rules.show(config, current_served(config)), "# address sets\n"]
    for name, prefixes in sets.read().items():
        lines.append(f"{name}: {' '.join(sorted(map(str, prefixes))) or '-'}\n")
    lines.append(f"# lowered routes, in table {config.datapath.route_table} or local\n")
    for route in routes.read_own(config.datapath):
        lines.append(f"{route}\n")
    return "".join(lines)


def cleanup(config: Config) -> None:
    """Remove everything of ours; a missing part is no error. Raises HostError."""
    rules.remove()
    remove_offload(config.datapath.pin_dir)
    routes.remove(config.datapath)
    sets.remove()
