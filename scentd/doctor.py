"""`scentd doctor`: what this host has of all that scentd needs, and the way out where something is missing.

Each check asks the thing itself: scentd.examine looks at the host, and scentd.probe tries the kernel's network
features out, in a child process with a network namespace of its own. "no" is essential and sets the exit status,
"warning" is not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from scentd import config, examine
from scentd.errors import ConfigError
from scentd.examine import Check

DEFAULT_CONFIG = "/etc/scentd/scentd.toml"
PROBE_TIMEOUT = 60.0  # seconds; it takes one


def checks(config_path: str | None = None) -> list[Check]:
    """All checks, in the order in which one would mend a host. Takes about a second."""
    configuration, loaded = check_config(config_path)
    daemon = loaded.daemon if loaded else config.Daemon()
    return [
        examine.check_capabilities(examine.effective_capabilities()),
        examine.check_kernel(platform.release()),
        examine.check_python(sys.version_info[:3]),
        examine.check_packages(examine.requirements()),
        *probed(),
        examine.check_ipv6(),
        examine.check_mixture(),
        examine.check_conntrack(examine.read("/proc/sys/net/netfilter/nf_conntrack_count")),
        examine.check_clock(*examine.clock()),
        configuration,
        examine.check_state_dir(Path(daemon.state_dir)),
        examine.check_space(Path(daemon.state_dir)),
        examine.check_offload(),
    ]


def run(json_output: bool, config_path: str | None) -> int:
    """Print the table, or JSON. 0 if nothing essential is missing, otherwise 1."""
    found = checks(config_path)
    print(json.dumps(to_dict(found), indent=2) if json_output else render(found))
    return exit_status(found)


def exit_status(found: Iterable[Check]) -> int:
    return int(any(check.ok == "no" for check in found))


def to_dict(found: Sequence[Check]) -> dict[str, object]:
    """{"ok": nothing essential is missing, "checks": [{"name", "ok", "found", "way_out"}]}."""
    return {"ok": exit_status(found) == 0, "checks": [asdict(check) for check in found]}


def render(found: Sequence[Check]) -> str:
    """A table for people; below each check that is not "yes" stands its way out."""
    wide = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.ok:<7}  {check.name:<{wide}}  {check.found}")
        if check.way_out:
            lines.append(f"{'':<7}  {'':<{wide}}  -> {check.way_out}")
    count = {ok: sum(check.ok == ok for check in found) for ok in ("no", "warning")}
    verdict = "scentd will not work here" if count["no"] else "scentd can run here"
    return "\n".join([*lines, f"{verdict}: {count['no']} missing, {count['warning']} warnings"])


def probed() -> list[Check]:
    """The findings of scentd.probe. A probe that kills its process is found out, too."""
    argv = [sys.executable, "-m", "scentd.probe"]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        output, ended = done.stdout, "" if done.returncode in (0, 1) else f"ended with status {done.returncode}"
        ended = ended or ("" if done.stdout else done.stderr[-300:])
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ended = f"hung for {PROBE_TIMEOUT:.0f} s"
    found = [Check(*json.loads(line)) for line in output.splitlines() if line.startswith("[")]
    if ended:
        after = found[-1].name if found else "its start"
        found.append(Check("probe", "no", f"after {after}: {ended}", "run `python -m scentd.probe` and see dmesg"))
    return found


def check_config(path: str | None) -> tuple[Check, config.Config | None]:
    """Without a path the default one, if it is there."""
    if path is None and not Path(DEFAULT_CONFIG).exists():
        return Check("configuration", "warning", f"no {DEFAULT_CONFIG} yet", "start from scentd.example.toml"), None
    path = path or DEFAULT_CONFIG
    try:
        return Check("configuration", "yes", path), config.load(path)
    except ConfigError as error:
        return Check("configuration", "no", "; ".join(error.problems), f"mend {path}"), None
