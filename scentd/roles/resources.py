"""The resources of this host: takes DesiredAmounts, runs a provider for each [[resource]], publishes what it tells.

A host takes only resources that its own configuration offers. The allocator may be on this host or on another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scentd.act.actuator import Tally
from scentd.act.providers import Provider
from scentd.act.resources import RESOURCES
from scentd.act.resources.backend import BackendSetting
from scentd.bus.local import LocalBus
from scentd.config.provide import own
from scentd.config.resource import Resource
from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.errors import HostError
from scentd.model import Applied, DesiredAmounts, Observed
from scentd.prefix import prefixes

log = logging.getLogger(__name__)

Amounts = Mapping[str, Mapping[str, float]]  # by resource and peer


class ResourceRole:
    """Publishes Observed and Applied, on the loop's thread."""

    def __init__(self, config: Config, bus: LocalBus, hurting: Callable[[str], Sequence[str]]) -> None:
        """`hurting`: the regions to which a peer's newest profile says that its latency is high."""
        self._config = config
        self._hurting = hurting
        self._bus = bus
        self._tally = Tally()
        self._providers: dict[str, Provider] = {}
        self._wanted: dict[str, dict[str, float]] = {}  # the newest of each, for a provider that is made anew
        self._loop: asyncio.AbstractEventLoop | None = None
        bus.subscribe(DesiredAmounts, self._on_amounts)

    async def start(self, given: Amounts) -> None:
        """Begin. `given`: what an earlier run has wanted; an amount that differs has been changed by somebody else."""
        self._loop = asyncio.get_running_loop()
        self._wanted = {name: dict(amounts) for name, amounts in given.items()}
        await asyncio.to_thread(sweep, own(self._config))
        for resource in own(self._config):
            self._open(resource)

    async def reload(self, config: Config) -> None:
        """Providers of unchanged resources and peers go on; the others are closed and made anew."""
        before, self._config = self._config, config
        same_peers = before.peer == config.peer
        wanted = {r.name: r for r in own(config)}
        for name, provider in list(self._providers.items()):
            if not same_peers or wanted.get(name) != provider.resource:
                del self._providers[name]
                gone = name not in wanted and provider.resource.on_exit == "give-back"
                await asyncio.to_thread(provider.close, gone)
        await asyncio.to_thread(sweep, own(config))
        for name, resource in wanted.items():
            if name not in self._providers:
                self._open(resource)

    def close(self, remove: bool) -> None:
        """Stop all providers at once. With `remove`, a resource with on_exit = "give-back" is given back, and what it
        has put into this host's kernel goes.
        """
        for provider in self._providers.values():
            provider.begin_close(remove and provider.resource.on_exit == "give-back")
        for provider in self._providers.values():
            provider.join()
        self._providers.clear()
        if remove:
            sweep([r for r in own(self._config) if r.on_exit == "keep"])

    def why_not(self, resource: str, peer: str) -> str:
        """Why this host does not give the peer what is wanted of a resource of its own."""
        provider = self._providers.get(resource)
        return provider.why_not(peer) if provider is not None else ""

    def counters(self) -> Mapping[str, int]:
        return self._tally.all()

    def _open(self, resource: Resource) -> None:
        peers = {p.name: prefixes(p.addresses) for p in self._config.peer if resource.peer in ("*", p.name)}
        directory = Path(self._config.daemon.state_dir) / "resources" / resource.name
        setting = BackendSetting(peers=peers, directory=directory, tally=self._tally, hurting=self._hurting)
        provider = Provider(RESOURCES[kind_of(resource)](resource, setting), self._on_report)
        self._providers[resource.name] = provider
        given = {peer: amount for peer, amount in self._wanted.get(resource.name, {}).items() if peer in peers}
        provider.start(given)

    def _on_amounts(self, wanted: DesiredAmounts) -> None:
        for name, amounts in wanted.amounts.items():
            self._wanted.setdefault(name, {}).update(amounts)
            if name in self._providers:
                self._providers[name].want(amounts)

    def _on_report(self, report: Observed | Applied) -> None:
        """Called on a provider's thread."""
        assert self._loop is not None  # start() has run
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody is left to be told
            self._loop.call_soon_threadsafe(self._bus.publish, report)


def sweep(resources: Sequence[Resource]) -> None:
    """Remove what earlier configurations have left and none of these uses. A failure is logged."""
    for kind, backend in RESOURCES.items():
        try:
            for removed in backend.sweep(resources):
                log.info("removed %s, which no resource uses any more", removed)
        except (HostError, OSError) as error:
            log.error("resources of kind %s: %s; scentd cleanup removes what is left", kind, error)
