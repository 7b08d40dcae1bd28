"""What the daemon makes on the host for its packet path: address sets, routes, rules. In this order, and back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from scentd.config import Config
from scentd.datapath import routes, rules, sets
from scentd.datapath.watch import Watch
from scentd.errors import ScentdError

log = logging.getLogger(__name__)

Limits = tuple[tuple[str, int], ...]


class Host:
    """Applies and removes; keeps our routes in step with the host's.

    `on_limits` is called on the loop thread with the full path MTUs when routes changed.
    `apply` and `remove` block and must not run on the loop's thread.
    """

    def __init__(self, on_limits: Callable[[Limits], None]) -> None:
        self._on_limits = on_limits
        self._loop = asyncio.get_running_loop()
        self._config: Config | None = None
        self._watch: Watch | None = None
        self._busy = threading.Lock()  # the watch, a reload and the stop are different threads
        self._removed = False

    def apply(self, config: Config) -> Limits:
        """Make the host as the configuration wants it. Raises HostError."""
        with self._busy:
            if self._removed:  # a reload that the stop has overtaken
                return ()
            limits = install(config)
            self._config = config
        if self._watch is None:
            self._watch = Watch(config.datapath, self._replan)
            self._watch.start()
        return limits

    def remove(self, config: Config) -> None:
        if self._watch is not None:
            self._watch.stop()
        with self._busy:
            self._removed = True
            cleanup(config)

    def _replan(self) -> None:
        assert self._config is not None  # the watch is started after it is set
        try:
            with self._busy:
                limits = routes.apply(self._config).limits()
        except ScentdError as error:
            log.error("routes to peers: %s", error)
            return
        self._loop.call_soon_threadsafe(self._on_limits, limits)


def planned(config: Config) -> Limits:
    """The full path MTUs that `install` will find; touches nothing. Raises HostError."""
    return routes.planned(config).limits()


def install(config: Config) -> Limits:
    """Make the host as the configuration wants it; doing it twice is harmless. Raises HostError."""
    sets.apply(config)
    limits = routes.apply(config).limits()
    rules.apply(config)
    return limits


def show(config: Config) -> str:
    """The rules, the sets and the lowered routes: wanted and there."""
    lines = [rules.show(config), "# address sets\n"]
    for name, prefixes in sets.have().items():
        lines.append(f"{name}: {' '.join(sorted(map(str, prefixes))) or '-'}\n")
    lines.append(f"# routes in table {config.datapath.route_table}\n")
    for route in routes.have(config.datapath):
        lines.append(f"{route}\n")
    return "".join(lines)


def cleanup(config: Config) -> None:
    """Remove all that is ours; what is not there is fine. Raises HostError."""
    rules.remove()
    routes.remove(config.datapath)
    sets.remove()
