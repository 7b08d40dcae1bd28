"""A kind of resource: its section of the configuration, and its back end, which really gives and takes it.

A back end belongs to one thread, which only it uses (act/providers.py), so it may block; it must give up when
`setting.closing` is set. What it is asked is idempotent: `change` to an amount that is there does nothing. It
reads what there is from the world (`observe`) and trusts no memory of its own: somebody else may have changed it, and
scentd may have been killed half-way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from scentd.act.actuator import Tally
from scentd.config.resource import Resource
from scentd.errors import HostError
from scentd.prefix import Prefix

R = TypeVar("R", bound=Resource)


class Refused(HostError):
    """The change will not work by trying again: somebody must change something. The text says what to grant or mend."""


@dataclass(frozen=True, slots=True)
class BackendSetting:
    """The facts that a back end gets besides its section."""

    peers: Mapping[str, Sequence[Prefix]]  # whom the resource serves, with their prefixes
    directory: Path  # for files of the back end's own; made when it is needed
    tally: Tally  # counters, named RESOURCE_what
    closing: threading.Event = field(default_factory=threading.Event)  # the daemon stops
    # By peer the regions to which its newest profile states a high latency.
    hurting: Callable[[str], Sequence[str]] = lambda peer: ()


class Backend(Generic[R]):
    """The running half of one [[resource]]. Raises HostError (tried again later) or Refused (told, and not tried again
    before something changes).
    """

    section: ClassVar[type[Resource]]

    def __init__(self, resource: R, setting: BackendSetting) -> None:
        self.resource = resource
        self.setting = setting

    def observe(self) -> Mapping[str, float]:
        """By peer the amount that serves it now. A peer without any may be missing."""
        raise NotImplementedError

    def change(self, peer: str, amount: float) -> None:
        """Give the peer this amount; return when it has it. What is taken back is drained first."""
        raise NotImplementedError

    def close(self) -> None:
        """Close connections; what was given stays."""

    @classmethod
    def remove_all(cls) -> list[str]:
        """Remove what this kind has put into this host's kernel (`scentd cleanup`), and return its names.

        It leaves what serves a peer's data, such as replicas and instances. Raises HostError.
        """
        return []

    @classmethod
    def sweep(cls, resources: Sequence[Resource]) -> list[str]:
        """Likewise, but for what `resources` use: all of this host's. For what an earlier configuration has left."""
        return []

    @classmethod
    def notes(cls, resources: Sequence[R]) -> list[str]:
        """What the configuration asks of this host in vain, as far as can be told before it runs."""
        return []

    def wait(self, seconds: float) -> None:
        """Pause. Raises HostError if the daemon stops meanwhile."""
        if self.setting.closing.wait(seconds):
            raise HostError(f"resource {self.resource.name}: not finished, because scentd stops")


BackendType = type[Backend[Any]]
