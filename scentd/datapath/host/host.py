"""The packet path's parts on the host: address sets, programs, routes, rules. Made in order, and removed."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from scentd.config.sections import Config
from scentd.core.interest import Interest, spans
from scentd.core.lowered_mtu import EMPTY, RoutePlan
from scentd.core.offload.coverage import Coverage
from scentd.datapath.host import path_table, rewriting, routes, rules, selection
from scentd.datapath.host.netlink_watch import NetlinkWatch
from scentd.datapath.host.restored import Restored
from scentd.datapath.host.rewritten import Rewrites
from scentd.datapath.host.rule_watch import RuleWatch
from scentd.datapath.host.watch import FOLLOW, Changes, Watch
from scentd.datapath.offload.interfaces import read_served
from scentd.datapath.offload.offload import Offload, remove_offload
from scentd.errors import ScentdError
from scentd.guard import orders
from scentd.guard.client import GuardClient, write_document
from scentd.system import nft, rtnetlink

log = logging.getLogger(__name__)

Limits = tuple[tuple[str, int], ...]


class HostFacts(NamedTuple):
    """The facts about the host that the tables of the packet path need."""

    limits: Limits = ()  # full path MTUs by prefix
    addresses: tuple[str, ...] = ()  # the host's own
    forward_lowered: bool = False  # the kernel applies the lowered MTUs to forwarded packets, too
    origins: tuple[tuple[str, int], ...] = ()  # the index of each interface that a network names and that is there


class Installed(NamedTuple):
    """What an installation has found and made."""

    facts: HostFacts
    served: Coverage | None  # by our programs; the rules fit this
    plan: RoutePlan = EMPTY
    routes_allow: bool = False  # that the host is rule-free
    addresses: Collection[tuple[int, str]] = ()  # by interface
    rewrites: Rewrites = Rewrites()


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
        self._generation: int | None = None  # of nftables, when our table was last seen to be whole
        self._offload: Offload | None = None
        self._installed = Installed(HostFacts(), None)
        self._watch: Watch | None = None
        self._skipped = False  # changes that seemed to be of no interest; the next check looks again
        self._route_watches: list[Watch] = []
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
            self._watch = Watch(self._on_change)
            self._route_watches = [Watch(routes.follow, FOLLOW), self._watch]
            self._watches = [*self._route_watches, RuleWatch(self._on_rules)]
            self._take_interest(interest(config, self._installed))
            for watch in self._watches:
                watch.start()
        return facts

    def _install(self) -> HostFacts:
        self._is_whole = False
        self._generation = None
        facts = self._update()
        self._is_whole = True
        return facts

    def _update(self, changes: Changes | None = None) -> HostFacts:
        """Look at the whole host; with `changes` only interfaces that have changed are looked at."""
        self._skipped = False
        self._take_interest(None)  # what happens while we look may be of interest
        self._installed = update(self._config, self._offload, changes)
        self._take_interest(interest(self._config, self._installed))
        return self._installed.facts

    def _take_interest(self, interest: Interest | None) -> None:
        for watch in self._route_watches:
            watch.interest = interest

    def _follow(self, changes: Changes) -> HostFacts | None:
        """Look at what has changed; None if the facts have not."""
        if changes.routes or changes.lost:
            return self._update(None if changes.lost else changes)
        facts, served, plan, routes_allow, *_ = self._installed
        if self._offload is not None:
            self._offload.follow(changes.gone, changes.links)
            if restrict(self._offload.interfaces.cover(plan.interfaces()), routes_allow) != served:
                return self._update(changes)
            self._offload.interfaces.detach_unused()
        self._skipped = True
        addresses = changes.of(self._installed.addresses)
        self._installed = self._installed._replace(
            facts=facts._replace(addresses=texts(addresses), origins=origins(self._config)), addresses=addresses
        )
        return self._installed.facts if self._installed.facts != facts else None

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
                missing = self._find_missing()
                changed = rewriting.read() != self._installed.rewrites
                if self._offload is not None and not missing and not removal:
                    if self._offload.interfaces.lacks_programs():
                        missing = "offload: somebody has removed programs of ours"
                    changed = self._offload.interfaces.has_changed() or changed
                if missing:
                    self.restored.note(missing, time.monotonic())
                elif not changed:
                    if self._skipped and not removal:
                        self._tell(self._update(Changes()))
                    return False
            facts = self._install()
            if not was_whole:
                log.info("the host is as the configuration wants it again")
        self._tell(facts)
        return True

    def rewritten(self) -> Counter[tuple[str, str]]:
        """Packets that left unscented because this host rewrites them, by reason and address. Raises HostError."""
        return rewriting.counts() if any(self._installed.rewrites) else Counter()

    def has_news(self) -> bool:
        """Whether something has changed of which no watch tells. Raises HostError."""
        return self.applied and rewriting.differs(self._installed.rewrites)

    def _tell(self, facts: HostFacts) -> None:
        self._loop.call_soon_threadsafe(self._on_facts, facts)

    def _find_missing(self) -> str:
        """What of ours in the firewall somebody has removed or changed; "" if all is there. Raises HostError."""
        if not rules.is_applied(self._config, self._installed.served):
            return "iptables: somebody has changed rules of ours"
        generation = nft.generation()
        if generation != self._generation:
            have = self._installed
            if not path_table.is_applied(selection.select(self._config, have.served, have.rewrites)):
                return f"nftables: somebody has changed the table {selection.NAME}, which is ours"
            self._generation = generation
        return ""

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
                if self._stopped or self._watch is None:
                    return
                facts = self._follow(self._watch.last)
        except ScentdError as error:
            log.error("routes to peers: %s", error)
            self._is_whole = False  # the next check tries again
            return
        if facts is not None:
            self._tell(facts)


def with_queue(config: Config, first: int) -> Config:
    return replace(config, datapath=replace(config.datapath, queue=first))


def read_facts(config: Config) -> HostFacts:
    """The facts that `update` will return, as far as they are known before it. Changes nothing. Raises HostError."""
    return HostFacts(routes.read_plan(config).limits(), texts(rtnetlink.addresses()), origins=origins(config))


def reinstall(config: Config) -> None:
    """Write routes and rules again; they fit a daemon's attached programs. Raises HostError."""
    write(as_installed(config), routes.read_plan(config), current_served(config), rewriting.read())


def update(config: Config, offload: Offload | None, changes: Changes | None = None) -> Installed:
    """Write the routes, programs and rules that the host's own routes and interfaces require.

    With `changes` the programs on all other interfaces are not looked at.

    A program is attached before the rules leave packets to it, and detached after they send these to the queue again.
    Programs come first of all: on a rule-free host a new interface has nothing else that stamps its packets.
    """
    if offload is not None:
        if changes is None:
            offload.attach()
        else:
            offload.follow(changes.gone, changes.links)
    plan, served, routes_allow, rewrites = routes.read_plan(config), None, False, rewriting.read()
    if offload is not None:
        offload.interfaces.prefer(plan.interfaces())
        routes_allow = may_be_rule_free(config, rewrites)
        served = restrict(offload.interfaces.cover(plan.interfaces()), routes_allow)
    limits, lowered = write(config, plan, served, rewrites)
    if offload is not None:
        offload.interfaces.detach_unused()
    addresses = rtnetlink.addresses()
    facts = HostFacts(limits, texts(addresses), lowered, origins(config))
    return Installed(facts, served, plan, routes_allow, addresses, rewrites)


def texts(addresses: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(sorted({address for _, address in addresses}))


def may_be_rule_free(config: Config, rewrites: Rewrites) -> bool:
    """Whether nothing needs the queue; what leaves encrypted in a tunnel does."""
    return not rewrites.ipsec and routes.may_be_rule_free(config)


def origins(config: Config) -> tuple[tuple[str, int], ...]:
    """The interfaces that networks name, with their indexes; without those that are not there."""
    found = []
    for name in (name for network in config.network for name in network.interface):
        with suppress(OSError):  # it may come later, and the watch tells of it
            found.append((name, socket.if_nametoindex(name)))
    return tuple(found)


def restrict(served: Coverage, routes_allow: bool) -> Coverage:
    """Clear `rule_free` unless the routes allow it, too."""
    return served._replace(rule_free=served.rule_free and routes_allow)


def interest(config: Config, installed: Installed) -> Interest:
    """Which changes of the host may lead to another plan."""
    plan = installed.plan
    sources = {route.source for route in plan.routes if route.source is not None}
    peers = spans(prefix for prefix, _ in routes.peer_prefixes(config))
    forwards = None if config.stamp.forwarded else not installed.routes_allow and routes.forwards()
    return Interest(peers, plan.interfaces(), sources, forwards)


def write(config: Config, plan: RoutePlan, served: Coverage | None, rewrites: Rewrites) -> tuple[Limits, bool]:
    """Write routes and rules to fit these programs. Return the paths' MTUs, and whether lowered ones bind forwarding.

    The order is such that packets that the queue has stamped find the routes that they need, and marked ones the queue.
    """
    want = selection.select(config, served, rewrites)
    if served is not None and served.rule_free:
        path_table.apply(want)
        rules.apply(config, served)
        return routes.apply(config, rule_free=True).limits(), True
    stamping = len(served.stamping) if served is not None else 0
    lowered = config.stamp.forwarded and 0 < stamping == len(plan.interfaces())
    limits = routes.apply(config, lowered).limits()
    rules.apply(config, served)
    path_table.apply(want)
    return limits, lowered


def as_installed(config: Config) -> Config:
    """The configuration with the first queue that the installed rules lead to: a daemon's successor has others."""
    return with_queue(config, rules.installed_queue(config))


def current_served(config: Config) -> Coverage | None:
    """The interfaces that a daemon's programs serve now; None without programs."""
    plan = routes.read_plan(config)
    served = read_served(config.datapath.pin_dir, plan.interfaces())
    return None if served is None else restrict(served, may_be_rule_free(config, rewriting.read()))


def show(config: Config) -> str:
    """The rules and the lowered routes as text, and the difference from what the configuration requires."""
    served = current_served(config)
    lines = [rules.show(as_installed(config), served)]
    want = selection.select(config, served, rewriting.read())
    state = "as wanted" if path_table.is_applied(want) else "differs from what is wanted"
    lines.append(f"# nftables: installed, {state}\n{path_table.show()}")
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
    path_table.remove()


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
