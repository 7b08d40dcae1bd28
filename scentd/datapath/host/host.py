"""The packet path's parts on the host: address sets, programs, routes, rules. Made in order, and removed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from scentd.config.sections import Config
from scentd.core.closed import closed
from scentd.core.lowered_mtu import RoutePlan
from scentd.core.offload.coverage import Coverage
from scentd.datapath.host import marks, routes, rules, sets
from scentd.datapath.host.netlink_watch import NetlinkWatch
from scentd.datapath.host.restored import Restored
from scentd.datapath.host.rule_watch import RuleWatch
from scentd.datapath.host.watch import FOLLOW, Watch
from scentd.datapath.offload.interfaces import read_served
from scentd.datapath.offload.offload import Offload, remove_offload
from scentd.errors import ScentdError
from scentd.guard import orders
from scentd.guard.client import GuardClient, write_document
from scentd.system import nft

log = logging.getLogger(__name__)

Limits = tuple[tuple[str, int], ...]


class HostFacts(NamedTuple):
    """The facts about the host that the tables of the packet path need."""

    limits: Limits = ()  # full path MTUs by prefix
    addresses: tuple[str, ...] = ()  # the host's own
    forward_lowered: bool = False  # the kernel applies the lowered MTUs to forwarded packets, too


class Installed(NamedTuple):
    """What an installation has found and made."""

    facts: HostFacts
    served: Coverage | None  # by our programs; the rules fit this


class Host:
    """Makes and removes these parts; routes and programs of ours update the host's routes and interfaces.

    `on_facts` is called on the loop's thread after routes or addresses have changed, `on_removal` after somebody has
    removed rules, ours perhaps: then check().
    `apply` and `remove` block and must not run on the loop's thread.
    """

    def __init__(self, config: Config, on_facts: Callable[[HostFacts], None], on_removal: Callable[[], None]) -> None:
        self._on_facts = on_facts
        self._on_removal = on_removal
        self._loop = asyncio.get_running_loop()
        self._config = config  # the newest
        self.applied = False  # some configuration is on the host
        self._is_whole = False  # and it is the newest, all of it
        self._offload: Offload | None = None
        self._served: Coverage | None = None
        self._watches: list[NetlinkWatch] = []
        self.restored = Restored()
        self._lock = threading.Lock()  # the watch, a reload and the stop run on different threads
        self._stopped = False

    def apply(self, config: Config, offload: Offload | None = None) -> HostFacts:
        """Make the host as the configuration wants it. Raises HostError."""
        with self._lock:
            if self._stopped:  # the stop came before this reload
                return HostFacts()
            self._config, self._offload = config, offload
            facts = self._install()
            self.applied = True
        if not self._watches:
            self._watches = [Watch(routes.follow, FOLLOW), Watch(self._on_change), RuleWatch(self._on_rules)]
            for watch in self._watches:
                watch.start()
        return facts

    def _install(self) -> HostFacts:
        self._is_whole = False
        facts, self._served = install(self._config, self._offload)
        self._is_whole = True
        return facts

    def check(self, removal: bool = False) -> bool:
        """Put back what somebody has removed; finish what a reload could not. Raises HostError.

        `removal`: something was removed from nftables, so only what is there is looked at.
        Return whether anything had to be done.
        """
        with self._lock:
            if not self.applied or self._stopped:
                return False
            was_whole = self._is_whole
            if was_whole:
                missing, changed = find_missing(self._config, self._served), False
                if self._offload is not None and not missing and not removal:
                    if self._offload.interfaces.lacks_programs():
                        missing = "offload: somebody has removed programs of ours"
                    changed = self._offload.interfaces.has_changed()
                if missing:
                    self.restored.note(missing, time.monotonic())
                elif not changed:
                    return False
            facts = self._install()
            if not was_whole:
                log.info("the host is as the configuration wants it again")
        self._loop.call_soon_threadsafe(self._on_facts, facts)
        return True

    def leave(self) -> None:
        """Change nothing on the host from now on."""
        for watch in self._watches:
            watch.stop()
        self._watches = []
        with self._lock:
            self._stopped = True

    def remove(self) -> None:
        """Remove everything. Raises HostError."""
        self.leave()
        cleanup(self._config)

    def _on_rules(self) -> None:
        if not self.restored.is_fight(time.monotonic()):
            self._loop.call_soon_threadsafe(self._on_removal)

    def _on_change(self) -> None:
        try:
            with self._lock:
                if self._stopped:
                    return
                facts, self._served = update(self._config, self._offload)
        except ScentdError as error:
            log.error("routes to peers: %s", error)
            self._is_whole = False  # the next check tries again
            return
        self._loop.call_soon_threadsafe(self._on_facts, facts)


def find_missing(config: Config, served: Coverage | None) -> str:
    """What of ours in the firewall somebody has removed or changed; "" if all is there. Raises HostError."""
    if not rules.is_applied(config, served):
        return "iptables: somebody has changed rules of ours"
    if not sets.is_applied(config):
        return "ipset: somebody has changed address sets of ours"
    if clears_mark(config, served) and config.datapath.mark_verified not in marks.read():
        return f"nftables: somebody has changed the table {marks.NAME}, which is ours"
    return ""


def with_queue(config: Config, first: int) -> Config:
    return replace(config, datapath=replace(config.datapath, queue=first))


def read_facts(config: Config) -> HostFacts:
    """The facts that `install` will return, as far as they are known before it. Changes nothing. Raises HostError."""
    return HostFacts(routes.read_plan(config).limits(), routes.own_addresses())


def install(config: Config, offload: Offload | None = None) -> Installed:
    """Make the host as the configuration wants it; doing it twice is harmless. Raises HostError."""
    sets.apply(config)
    return update(config, offload)


def reinstall(config: Config) -> None:
    """Write sets, routes and rules again; they fit a daemon's attached programs. Raises HostError."""
    sets.apply(config)
    write(as_installed(config), routes.read_plan(config), current_served(config))


def update(config: Config, offload: Offload | None) -> Installed:
    """Write the routes, programs and rules that the host's own routes and interfaces require.

    A program is attached before the rules leave packets to it, and detached after they send these to the queue again.
    Programs come first of all: on a rule-free host a new interface has nothing else that stamps its packets.
    """
    if offload is not None:
        offload.attach()
    plan = routes.read_plan(config)
    served = None if offload is None else restrict_rule_free(config, offload.interfaces.cover(plan.interfaces()))
    limits, lowered = write(config, plan, served)
    if offload is not None:
        offload.interfaces.detach_unused()
    return Installed(HostFacts(limits, routes.own_addresses(), lowered), served)


def restrict_rule_free(config: Config, served: Coverage) -> Coverage:
    """Clear `rule_free` unless the routes allow it, too."""
    return served._replace(rule_free=served.rule_free and routes.may_be_rule_free(config))


def write(config: Config, plan: RoutePlan, served: Coverage | None) -> tuple[Limits, bool]:
    """Write routes and rules to fit these programs. Return the paths' MTUs, and whether lowered ones bind forwarding.

    The order is such that packets that the queue has stamped find the routes that they need.
    """
    if clears_mark(config, served):
        marks.apply(config.datapath.mark_verified)
    if served is not None and served.rule_free:
        rules.apply(config, served)
        return routes.apply(config, rule_free=True).limits(), True
    stamping = len(served.stamping) if served is not None else 0
    lowered = config.stamp.forwarded and 0 < stamping == len(plan.interfaces())
    limits = routes.apply(config, lowered).limits()
    rules.apply(config, served)
    return limits, lowered


def clears_mark(config: Config, served: Coverage | None) -> bool:
    """Whether packets lose the mark behind the verifier: wherever that is possible, and always where it is needed."""
    return nft.available() or served is not None or closed(config) is not None


def as_installed(config: Config) -> Config:
    """The configuration with the first queue that the installed rules lead to: a daemon's successor has others."""
    return with_queue(config, rules.installed_queue(config))


def current_served(config: Config) -> Coverage | None:
    """The interfaces that a daemon's programs serve now; None without programs."""
    plan = routes.read_plan(config)
    served = read_served(config.datapath.pin_dir, plan.interfaces())
    return None if served is None else restrict_rule_free(config, served)


def show(config: Config) -> str:
    """The rules, the sets and the lowered routes as text, and the difference from what the configuration requires."""
    lines = [rules.show(as_installed(config), current_served(config)), "# address sets\n"]
    for name, prefixes in sets.read().items():
        lines.append(f"{name}: {' '.join(sorted(map(str, prefixes))) or '-'}\n")
    lines.append(f"# marks cleared behind the verifier, in nftables table inet {marks.NAME}\n")
    lines += [f"{mark:#x}\n" for mark in marks.read()]
    lines.append("# lowered routes, by table\n")
    for table, route in routes.read_own():
        lines.append(f"{table}: {route}\n")
    return "".join(lines)


def cleanup(config: Config) -> None:
    """Remove everything of ours; a missing part is no error. Raises HostError."""
    rules.remove()
    release_waiting(config)
    remove_offload(config.datapath.pin_dir)
    routes.remove()
    sets.remove()
    marks.remove()


def release_waiting(config: Config) -> None:
    """Let the packets go on that wait in a gone daemon's queues; without a guard there are none."""
    guard = GuardClient(config.guard.socket)
    if guard.connect():
        guard.ask(orders.Release())
        guard.close()


def open_closed(config: Config) -> bool:
    """Let the guard keep nothing closed any more, also after the next boot; return whether it did. Raises HostError."""
    guard = GuardClient(config.guard.socket)
    before = guard.connect() and guard.ask(orders.Tell()).closed
    write_document(Path(config.daemon.state_dir) / orders.STATE_FILE, None)
    if guard.is_connected():
        guard.ask(orders.Look())
    guard.close()
    return before
