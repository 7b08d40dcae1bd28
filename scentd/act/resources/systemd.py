"""Instances of a systemd template unit: the amount is how many of them run.

It speaks to systemd over D-Bus (org.freedesktop.systemd1(5)). Instances that somebody started by hand count too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

from scentd.act.resources.backend import Backend
from scentd.act.resources.systemd_bus import Manager, connected
from scentd.config.resource import Resource
from scentd.config.units import Seconds
from scentd.errors import HostError

T = TypeVar("T")
TEMPLATE = re.compile(r"[A-Za-z0-9:_.{}-]+@\.[a-z]+")
INSTANCE = re.compile(r"[A-Za-z0-9:_.-]{1,64}")


class SystemdResource(Resource, tag_field="kind", tag="systemd", kw_only=True):
    """`unit` is a template, such as worker-{peer}@.service."""

    unit: ClassVar[str] = "instances"

    template: str
    instances: tuple[str, ...] = ()  # in the order in which they start; default: 1 to the maximum
    timeout: Seconds = 60.0  # how long the start or stop of one instance may take
    settle: Seconds = 1.0  # how long an instance must have run before it counts as started

    def needs_peer_in(self) -> str:
        return "template"

    def names(self) -> tuple[str, ...]:
        return self.instances or tuple(str(number) for number in range(1, int(self.maximum) + 1))

    def mistakes(self, path: str) -> list[str]:
        problems = super().mistakes(path)
        if not TEMPLATE.fullmatch(self.template):
            problems.append(f"{path}.template: is no template; write one such as worker-{{peer}}@.service")
        if any(not INSTANCE.fullmatch(name) for name in self.instances):
            problems.append(f"{path}.instances: write names of letters, digits and :_.- alone")
        if self.instances and len(set(self.instances)) < self.maximum:
            problems.append(f"{path}.instances: are fewer than {path}.maximum; name more, or lower the maximum")
        if self.timeout <= 0 or self.settle < 0:
            problems.append(f"{path}.timeout: must be more than 0, and {path}.settle not below 0")
        return problems


class SystemdBackend(Backend[SystemdResource]):
    """Counts systemd_starts, systemd_stops and systemd_failures."""

    section = SystemdResource

    def observe(self) -> Mapping[str, float]:
        async def count(manager: Manager) -> dict[str, float]:
            return {peer: float(len(await self.active(manager, peer))) for peer in self.setting.peers}

        return self.with_manager(count)

    def change(self, peer: str, amount: float) -> None:
        """Start the first instances that do not run, or stop the last that do."""

        async def bring(manager: Manager) -> None:
            active = await self.active(manager, peer)
            surplus = len(active) - int(amount)
            for name in sorted(active, key=self.rank, reverse=True)[: max(surplus, 0)]:
                await self.stop(manager, self.unit_name(peer, name))
            idle = [name for name in self.resource.names() if name not in active]
            if len(idle) < -surplus:
                raise HostError(f"resource {self.resource.name}: has no instances left to start for {peer}")
            for name in idle[: max(-surplus, 0)]:
                await self.start(manager, self.unit_name(peer, name))

        try:
            self.with_manager(bring)
        except HostError:
            self.setting.tally.add("systemd_failures")
            raise

    def with_manager(self, work: Callable[[Manager], Awaitable[T]]) -> T:
        async def run() -> T:
            async with connected(self.setting.closing, self.resource.timeout) as manager:
                return await work(manager)

        return asyncio.run(run())

    async def active(self, manager: Manager, peer: str) -> set[str]:
        before, after = self.unit_name(peer, "*").split("*")
        names = await manager.active(f"{before}*{after}")
        return {name.removeprefix(before).removesuffix(after) for name in names}

    def unit_name(self, peer: str, instance: str) -> str:
        return self.resource.template.replace("{peer}", peer).replace("@.", f"@{instance}.")

    def rank(self, instance: str) -> tuple[Any, ...]:
        """Where an instance stands in the order of starts; those that only somebody else starts come last."""
        names = self.resource.names()
        if instance in names:
            return 0, names.index(instance), instance
        return 1, int(instance) if instance.isascii() and instance.isdigit() else 0, instance

    async def start(self, manager: Manager, unit: str) -> None:
        self.setting.tally.add("systemd_starts")
        try:
            await manager.job("StartUnit", unit)
        except TimeoutError:
            await manager.order("StopUnit", unit)  # a half-started instance would go on without anybody who waits
            raise HostError(
                f"unit {unit}: did not start within {self.resource.timeout:g} s; see systemctl status {unit}"
            ) from None
        await manager.pause(self.resource.settle)
        state = await manager.state(unit)
        if state != "active":
            raise HostError(f"unit {unit}: started and is {state}; see systemctl status {unit}")

    async def stop(self, manager: Manager, unit: str) -> None:
        self.setting.tally.add("systemd_stops")
        try:
            await manager.job("StopUnit", unit)
        except TimeoutError:
            raise HostError(
                f"unit {unit}: did not stop within {self.resource.timeout:g} s; see systemctl status {unit}"
            ) from None
        state = await manager.state(unit)
        if state not in ("inactive", "failed"):
            raise HostError(f"unit {unit}: was stopped and is {state}; see systemctl status {unit}")
