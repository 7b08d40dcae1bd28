"""The checks whose answer depends on the service's sandbox, made in that sandbox.

`systemd-run` starts the unit's own program as `scentd doctor --here`, with the unit's own lines and those of its
drop-ins. What root may do in a shell, a unit may not.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scentd.config.sections import Config, DaemonSettings, Datapath
from scentd.datapath.offload import pins, programs
from scentd.datapath.offload.libbpf import Object
from scentd.doctor import examine
from scentd.doctor.examine import Check
from scentd.errors import ConfigError, HostError
from scentd.state import identities

UNIT = "scentd.service"
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
TIMEOUT = 60.0  # seconds; it takes two
# Lines of [Service] that are no sandbox: how systemd starts, watches and ends the daemon; and the runtime directory,
# which systemd would remove at the end of the check.
OTHERS = (
    *("Exec", "Type=", "NotifyAccess=", "Restart", "SuccessExitStatus=", "Watchdog", "Timeout", "KillMode="),
    *("RuntimeDirectory", "FileDescriptorStore"),
)


def checks() -> list[Check]:
    """What the unit's sandbox says; nothing without systemd or without the unit. Takes two seconds."""
    text = unit_text() if BOOTED.is_dir() else ""
    service = list(service_lines(text))
    starts = [value for name, _, value in (line.partition("=") for line in service) if name == "ExecStart" and value]
    if not starts:
        return []
    argv = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--property=RuntimeMaxSec={TIMEOUT:.0f}"]
    argv += [f"--property={line}" for line in service if not line.startswith(OTHERS)]
    try:
        done = subprocess.run(
            [*argv, *doctor_command(starts[-1])], capture_output=True, text=True, timeout=2 * TIMEOUT, check=False
        )
        found = json.loads(done.stdout)["checks"]
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        said = done.stderr.strip()[-300:] if isinstance(error, json.JSONDecodeError) else str(error)
        way_out = f"see systemctl cat {UNIT} for what it forbids, and journalctl -u {UNIT}"
        return [Check("unit", "warning", f"nothing could be tried in its sandbox: {said}", way_out)]
    return [Check(**{**check, "name": f"unit: {check['name']}"}) for check in found]


def unit_text() -> str:
    """The unit's file and its drop-ins in their order; "" without such a unit."""
    argv = ["systemctl", "cat", "--no-pager", UNIT]
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False).stdout


def service_lines(text: str) -> Iterator[str]:
    """Every "Name=value" of the section [Service]."""
    section = ""
    for line in map(str.strip, text.replace("\\\n", " ").splitlines()):
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith(("#", ";")):
            yield line


def doctor_command(start: str) -> list[str]:
    """The argv of a doctor by the program and configuration of an ExecStart= line."""
    program, *arguments = shlex.split(start.lstrip("-@:+!"))
    named = arguments[arguments.index("--config") :][:2] if "--config" in arguments else []
    return [program, "doctor", "--here", "--json", *named]


# ---- in the sandbox ----


def here(configuration: Check, config: Config | None) -> list[Check]:
    """What may differ between a shell of root's and the service."""
    datapath = config.datapath if config else Datapath()
    return [
        examine.check_capabilities(examine.effective_capabilities()),
        check_keys(config) if config else configuration,
        examine.check_state_dir(Path((config.daemon if config else DaemonSettings()).state_dir)),
        *([] if datapath.offload == "off" else [check_pins(datapath.pin_dir)]),
    ]


def check_keys(config: Config) -> Check:
    """The configuration was read; read its key files as well, which may lie where the service sees nothing."""
    try:
        identities.load(config)
    except ConfigError as error:
        way_out = "ProtectHome= hides /home and /root: keep keys below /etc/scentd, or use LoadCredential="
        return Check("configuration", "no", "; ".join(error.problems), way_out)
    return Check("configuration", "yes", "readable, its key files, too")


def check_pins(pin_dir: str) -> Check:
    """Load the BPF programs and pin a map, as the daemon does. Without it the queues do everything."""
    place = Path(pin_dir) / f"doctor-{os.getpid()}"
    made = not place.parent.exists()
    try:
        with Object(str(programs.OBJECTS["stamp"])) as stamp, Object(str(programs.OBJECTS["verify"])) as verify:
            stamp.load()
            verify.load()
            programs.make_directory(place)
            try:
                pins.pin(stamp.map_fd("counters"), str(place / "counters"))
                pins.unpin(str(place / "counters"))
            finally:
                place.rmdir()
    except HostError as error:
        return Check("offload", "warning", str(error), "mend what it names; until then the queues do everything")
    finally:
        if made:
            with suppress(OSError):  # it was not made, or a daemon that has just started keeps its pins there
                place.parent.rmdir()
    return Check("offload", "yes", f"BPF programs loaded, a map pinned below {pin_dir}")
