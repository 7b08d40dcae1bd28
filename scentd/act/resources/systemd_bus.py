"""systemd's manager on D-Bus: jobs and states of units. Every wait has a limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from scentd.act.resources.backend import Refused
from scentd.errors import HostError

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
JOBS = f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'"
CALL = 10.0  # seconds for an answer to one call
LOOK = 0.1  # seconds between two looks at whether the daemon stops
PERMANENT = {  # D-Bus errors that trying again does not mend
    f"{SYSTEMD}.NoSuchUnit": "does not exist; install it",
    f"{SYSTEMD}.UnitMasked": "is masked; systemctl unmask it",
    f"{SYSTEMD}.LoadFailed": "cannot be loaded; see systemctl status",
    f"{SYSTEMD}.BadUnitSetting": "has a mistake; see systemd-analyze verify",
    "org.freedesktop.DBus.Error.AccessDenied": "may not be started or stopped by this user; let scentd run as root",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": "needs a polkit rule for this user",
}


class Manager:
    """One connection. Raises HostError or Refused; `job` raises TimeoutError too."""

    def __init__(self, bus: Any, closing: threading.Event, timeout: float) -> None:
        self.bus = bus
        self.closing = closing
        self.timeout = timeout
        self.results: dict[str, str] = {}  # by job, of JobRemoved
        bus.add_message_handler(self.hear)

    def hear(self, message: Any) -> None:
        if message.interface == MANAGER and message.member == "JobRemoved":
            _, job, _, result = message.body
            self.results[job] = result

    async def call(self, member: str, signature: str = "", *body: Any, **where: str) -> list[Any]:
        from dbus_fast import Message, MessageType  # slow to import

        place: dict[str, Any] = {"destination": SYSTEMD, "path": "/org/freedesktop/systemd1", "interface": MANAGER}
        message = Message(member=member, signature=signature, body=list(body), **(place | where))
        try:
            answer = await asyncio.wait_for(self.bus.call(message), CALL)
        except (TimeoutError, OSError, EOFError) as error:
            raise HostError(f"systemd: no answer to {member}: {error or 'timeout'}") from None
        if answer is None:
            raise HostError(f"systemd: no answer to {member}: the connection was closed")
        if answer.message_type is MessageType.ERROR:
            what = body[0] if body else member
            if answer.error_name in PERMANENT:
                raise Refused(f"unit {what}: {PERMANENT[answer.error_name]}")
            raise HostError(f"systemd: {member} {what}: {answer.error_name}")
        return answer.body

    async def subscribe(self) -> None:
        bus = "org.freedesktop.DBus"
        await self.call("AddMatch", "s", JOBS, destination=bus, path="/org/freedesktop/DBus", interface=bus)
        await self.call("Subscribe")

    async def active(self, pattern: str) -> list[str]:
        """Names of the units that are active."""
        (units,) = await self.call("ListUnitsByPatterns", "asas", ["active", "reloading"], [pattern])
        return [unit[0] for unit in units]

    async def state(self, unit: str) -> str:
        """Its ActiveState; "inactive" if systemd has forgotten it."""
        (units,) = await self.call("ListUnitsByNames", "as", [unit])
        return units[0][3] if units else "inactive"

    async def order(self, member: str, unit: str) -> str:
        """Ask for a job and return its path."""
        return (await self.call(member, "ss", unit, "replace"))[0]

    async def job(self, member: str, unit: str) -> None:
        """Ask for a job and wait for its end."""
        job = await self.order(member, unit)
        deadline = monotonic() + self.timeout
        while job not in self.results:
            if not self.bus.connected:
                raise HostError(f"unit {unit}: the connection to D-Bus was lost")
            if monotonic() > deadline:
                raise TimeoutError
            await self.pause(LOOK)
        result = self.results.pop(job)
        if result != "done":
            raise HostError(f"unit {unit}: {member} ended with {result!r}; see systemctl status {unit}")

    async def pause(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            if self.closing.is_set():
                raise HostError("systemd: not finished, because scentd stops")
            await asyncio.sleep(min(left, LOOK))


@asynccontextmanager
async def connected(closing: threading.Event, timeout: float) -> AsyncIterator[Manager]:
    """The system's manager for the length of the block."""
    try:
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus
    except ImportError:
        raise Refused("systemd: dbus-fast is missing; pip install 'scentd[systemd]'") from None
    try:
        bus = await asyncio.wait_for(MessageBus(bus_type=BusType.SYSTEM).connect(), CALL)
    except Exception as error:  # dbus-fast lets errors of sockets, of parsing and its own through
        raise HostError(f"systemd: cannot reach D-Bus: {error or 'timeout'}; is dbus.service running?") from None
    try:
        manager = Manager(bus, closing, timeout)
        await manager.subscribe()
        yield manager
    finally:
        bus.disconnect()
