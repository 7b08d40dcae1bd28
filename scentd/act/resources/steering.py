"""Keeps the table in the kernel that leads connections to edges (steer_table.py). Belongs to one thread."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import closing

from scentd.act.resources import steer_table
from scentd.act.resources.monitor_table import lengths_of
from scentd.act.resources.steer_table import End
from scentd.prefix import Prefix
from scentd.system import nft
from scentd.system.nft import Nftables


class Steering:
    """The table of one resource. Raises HostError if nftables refuses."""

    def __init__(self, name: str, known: Iterable[Prefix], origins: Mapping[int, End], edges: Iterable[End]) -> None:
        """`known`: whose connections may be led; `origins`: by IP version from where."""
        self._name = steer_table.NAME + name
        self._known = frozenset(prefix for prefix in known if prefix.version in origins)
        self._origins = origins
        lengths = lengths_of(self._known)
        self._text, self._mark, self._rules = steer_table.table(self._name, lengths, list(origins.values()), edges)
        self._nft: Nftables | None = None
        self._there: dict[Prefix, End] = {}  # all elements, as they were read last
        self._marks: list[str] = []

    def read(self) -> dict[Prefix, End]:
        """Where the connections of each prefix are led; those that go to the origin are missing."""
        state = steer_table.read(self._library().table(self._name, steer_table.FAMILY))
        self._there, self._marks = dict(state.ends), list(state.marks)
        return {prefix: end for prefix, end in self._there.items() if end not in self._origins.values()}

    @property
    def is_whole(self) -> bool:
        """Whether the rules were as they should be when they were read last."""
        return self._marks == [self._mark] * self._rules

    def set(self, led: Mapping[Prefix, End]) -> bool:
        """Lead these prefixes after a read(), and no other ones; whether the table had to be made anew.

        Without any it stays, empty: when the last chain of type nat goes, the kernel stops translating the packets of
        established connections, too.
        """
        led = {prefix: end for prefix, end in led.items() if prefix in self._known}
        wanted = {**led, **steer_table.kept(self._known, led, self._origins)}
        anew = not self.is_whole and bool(self._marks or self._there or led)
        if anew:
            commands = [steer_table.replacement(self._name, self._text, wanted)]
        elif self.is_whole:
            commands = steer_table.difference(self._name, self._there, wanted)
        else:
            commands = []
        if commands:
            self._library().run_text("\n".join(commands))
        return anew

    def close(self) -> None:
        """The table stays."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    def _library(self) -> Nftables:
        self._nft = self._nft or Nftables()
        return self._nft


def remove_tables(used: Collection[str]) -> list[str]:
    """Remove our tables but those of the resources `used`, and return their names. Raises HostError."""
    if not nft.available():
        return []
    keep = {steer_table.NAME + name for name in used}
    with closing(Nftables()) as library:
        ours = [
            name
            for family, name in library.tables()
            if family == steer_table.FAMILY and name.startswith(steer_table.NAME) and name not in keep
        ]
        if ours:
            library.run_text(
                "\n".join(f"{verb} table {steer_table.FAMILY} {name}" for name in ours for verb in ("add", "delete"))
            )
    return [f"nftables table {steer_table.FAMILY} {name}" for name in ours]
