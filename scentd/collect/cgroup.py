"""Files of control groups (cgroups(7)): v1, where controllers have hierarchies of their own, and v2, which has one.

A cgroup's name is its path in every hierarchy, as `systemd-cgls` shows it: machine.slice/vm1.scope. It comes and goes
with what runs in it; whoever reads it then gets a CollectError, and values again when it is back.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from scentd.collect.source import CollectError

MOUNTS = Path("/proc/self/mountinfo")  # proc_pid_mountinfo(5)
UNIFIED = ""  # stands for v2 among the names of controllers
UNLIMITED = ("max", "-1")  # v2, v1
ESCAPED = re.compile(r"\\([0-7]{3})")


class Hierarchy(NamedTuple):
    top: Path  # where it is mounted
    unified: bool  # v2


class Directory(NamedTuple):
    """A cgroup in one hierarchy."""

    path: Path
    top: Path
    unified: bool


def check_cgroup(name: str, path: str) -> list[str]:
    """The mistakes of a setting. The top is no cgroup of an application or guest: it is the host."""
    parts = name.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        return [f"{path}.cgroup: {name!r}; write a path as systemd-cgls shows it, e.g. system.slice/nginx.service"]
    return []


def reader_name(kind: str, cgroup: str) -> str:
    return f"{kind}_{cgroup.strip('/')}" if cgroup else kind


class Cgroup:
    """One cgroup, by its name. Every method raises CollectError."""

    def __init__(self, name: str) -> None:
        self.name = name.strip("/")
        self._hierarchies: dict[str, Hierarchy] | None = None

    def directory(self, controller: str) -> Directory:
        """The directory in v1's hierarchy of this controller if there is one, else in v2's."""
        if self._hierarchies is None:
            self._hierarchies = mounted()
        hierarchy = self._hierarchies.get(controller) or self._hierarchies.get(UNIFIED)
        if hierarchy is None:
            self._hierarchies = None
            what = f"of {controller or 'v2, which alone has this,'}"
            raise CollectError(
                f"cgroup {self.name}: no hierarchy {what} is mounted: mount -t cgroup2 none /sys/fs/cgroup"
            )
        return Directory(hierarchy.top / self.name, *hierarchy)

    def accounting(self, controller: str) -> Directory:
        """The same, or v2's if the cgroup is only there.

        systemd makes a unit's directory in a hierarchy of v1 only if it is to account there.
        """
        directory = self.directory(controller)
        if not directory.path.is_dir() and not directory.unified and UNIFIED in (self._hierarchies or {}):
            unified = self.directory(UNIFIED)
            return unified if unified.path.is_dir() else directory
        return directory

    def identity(self, directory: Directory) -> int:
        """The kernel's number of the cgroup: another one under the same name has another."""
        try:
            return directory.path.stat().st_ino
        except OSError as error:
            raise self._gone(directory, error) from None

    def read(self, directory: Directory, file: str) -> str:
        try:
            return (directory.path / file).read_text()
        except OSError as error:
            if directory.path.is_dir():
                raise CollectError(
                    f"cgroup {self.name}: {directory.path / file}: {error.strerror}; does the controller account for "
                    "it (systemd: CPUAccounting=yes, MemoryAccounting=yes in its unit)?"
                ) from None
            raise self._gone(directory, error) from None

    def number(self, directory: Directory, file: str) -> int:
        return self._int(directory, file, self.read(directory, file))

    def value(self, directory: Directory, file: str, *keys: str) -> int:
        """The sum of the values of these keys in a file of lines "key value"."""
        lines = dict(line.partition(" ")[::2] for line in self.read(directory, file).splitlines())
        missing = [key for key in keys if key not in lines]
        if missing:
            raise self._odd(directory, file, f"no {missing[0]}")
        return sum(self._int(directory, file, lines[key]) for key in keys)

    def words_upwards(self, directory: Directory, *files: str) -> list[list[str]]:
        """The words of these files in the cgroup, then in each above it that has them."""
        result = []
        path = directory.path
        while path != directory.top:
            try:
                result.append([word for file in files for word in (path / file).read_text().split()])
            except FileNotFoundError:  # the controller is not enabled at this height, so it limits nothing here
                pass
            except OSError as error:
                raise self._gone(directory, error) from None
            path = path.parent
        return result

    def lowest(self, directory: Directory, file: str) -> int | None:
        """The lowest limit of the cgroup and those above it; None if there is no limit."""
        texts = [text for (text,) in self.words_upwards(directory, file) if text not in UNLIMITED]
        return min((self._int(directory, file, text) for text in texts), default=None)

    def _int(self, directory: Directory, file: str, text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise self._odd(directory, file, repr(text[:40])) from None

    def _odd(self, directory: Directory, file: str, found: str) -> CollectError:
        return CollectError(
            f"cgroup {self.name}: {directory.path / file}: {found}; this kernel writes it otherwise: please report it"
        )

    def _gone(self, directory: Directory, error: OSError) -> CollectError:
        self._hierarchies = None  # it may be mounted elsewhere by now
        return CollectError(
            f"cgroup {self.name}: {directory.path}: {error.strerror}; it is there while something runs in it: "
            "see systemd-cgls, correct `cgroup`"
        )


def mounted() -> dict[str, Hierarchy]:
    """The hierarchies by controller, and v2's as UNIFIED. Raises CollectError."""
    try:
        return hierarchies(MOUNTS.read_text())
    except OSError as error:
        raise CollectError(f"{MOUNTS}: {error.strerror}; is /proc mounted?") from None


def hierarchies(mountinfo: str) -> dict[str, Hierarchy]:
    """Of several mounts of one hierarchy the first that shows all of it counts, then the first."""
    mounts: list[tuple[str, str, str, list[str]]] = []
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        fields, kinds = place.split(), kind.split()
        if len(fields) > 4 and len(kinds) > 2 and kinds[0] in ("cgroup", "cgroup2"):
            mounts.append((fields[3], ESCAPED.sub(unescaped, fields[4]), kinds[0], kinds[2].split(",")))
    result: dict[str, Hierarchy] = {}
    for _, top, kind, options in sorted(mounts, key=lambda mount: mount[0] != "/"):
        for controller in (UNIFIED,) if kind == "cgroup2" else options:
            result.setdefault(controller, Hierarchy(Path(top), kind == "cgroup2"))
    return result


def unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def processors(text: str) -> int:
    """How many processors a list like "0-3,8" names. Raises ValueError."""
    ranges = (part.partition("-") for part in text.split(",") if part)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
