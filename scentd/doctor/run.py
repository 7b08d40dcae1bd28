"""`scentd doctor`: checks everything that scentd needs on this host, and names the way out if something is missing.

examine.py looks at the host itself, probe.py tries the kernel's network features, in a child process with a network
namespace of its own, and sandbox.py what the service may do. "no" is essential and sets the exit status, "warning"
is not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from ipaddress import ip_address, ip_network
from pathlib import Path

from scentd.config.schema import kind_of
from scentd.config.sections import Config, DaemonSettings, Datapath
from scentd.control import client
from scentd.core.closed import Closed, closed
from scentd.datapath.host import bypass
from scentd.datapath.offload import interfaces, pins
from scentd.doctor import examine, marks, sandbox
from scentd.doctor.bus import check_bus
from scentd.doctor.examine import Check, Ok
from scentd.doctor.rewriting import check_ipsec, check_nat
from scentd.doctor.routing import check_narrow, check_routing
from scentd.errors import ConfigError, HostError, ScentdError
from scentd.kinds import load_config
from scentd.model import SCHEMA
from scentd.state import identities
from scentd.system import python
from scentd.wire.carrier import CARRIERS

DEFAULT_CONFIG = "/etc/scentd/scentd.toml"
PROBE_TIMEOUT = 60.0  # seconds; it takes one
OVERHEAD_MAX = max(carrier.overhead for carrier in CARRIERS.values())
ROOM_MIN = 1500 + OVERHEAD_MAX  # bytes: Ethernet's MTU, which guests have, and a scent


def checks(config_path: str | None = None) -> list[Check]:
    """All checks, in the order in which their problems should be solved. Takes some seconds."""
    configuration, loaded = check_config(config_path)
    daemon = loaded.daemon if loaded else DaemonSettings()
    datapath = loaded.datapath if loaded else Datapath()
    return [
        examine.check_capabilities(examine.effective_capabilities()),
        examine.check_kernel(platform.release()),
        examine.check_python(sys.version_info[:3]),
        examine.check_packages(examine.requirements()),
        *probe_checks(),
        examine.check_ipv6(),
        examine.check_mixture(),
        examine.check_conntrack(examine.read("/proc/sys/net/netfilter/nf_conntrack_count")),
        examine.check_clock(*examine.clock()),
        configuration,
        examine.check_state_dir(Path(daemon.state_dir)),
        examine.check_space(Path(daemon.state_dir)),
        examine.check_jit(examine.read("/proc/sys/net/core/bpf_jit_enable")),
        *([] if datapath.offload == "off" else [check_pin_dir(datapath.pin_dir)]),
        marks.check_marks(datapath),
        *(check_daemon(daemon.control_socket) or sandbox.checks()),
        *(() if loaded is None else of_configuration(loaded)),
    ]


def of_configuration(config: Config) -> list[Check]:
    """Whether this host is as the configuration needs it."""
    own = [check_routing(config), check_narrow(config), check_nat(config), check_ipsec(), check_lockout(config)]
    return [*own, *check_protected(config), *check_carried(config), *check_bus(config)]


def run(json_output: bool, config_path: str | None, here: bool = False) -> int:
    """Print the table, or JSON. 0 if nothing essential is missing, otherwise 1. `here`: what a sandbox may forbid."""
    found = sandbox.here(*check_config(config_path)) if here else checks(config_path)
    print(json.dumps(to_dict(found), indent=2) if json_output else render(found))
    return exit_status(found)


def exit_status(found: Iterable[Check]) -> int:
    return int(any(check.ok == "no" for check in found))


def to_dict(found: Sequence[Check]) -> dict[str, object]:
    """{"ok": nothing essential is missing, "checks": [{"name", "ok", "found", "way_out"}]}."""
    return {"schema": SCHEMA, "ok": exit_status(found) == 0, "checks": [asdict(check) for check in found]}


def render(found: Sequence[Check]) -> str:
    """A table for people; each check that is not "yes" has its way out below it."""
    wide = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.ok:<7}  {check.name:<{wide}}  {check.found}")
        if check.way_out:
            lines.append(f"{'':<7}  {'':<{wide}}  -> {check.way_out}")
    count = {ok: sum(check.ok == ok for check in found) for ok in ("no", "warning")}
    verdict = "scentd will not work here" if count["no"] else "scentd can run here"
    if count["no"] and os.geteuid() != 0:
        verdict = "not judged: only root can tell what is missing from what this user may not do (sudo scentd doctor)"
    return "\n".join([*lines, f"{verdict}: {count['no']} missing, {count['warning']} warnings"])


def probe_checks() -> list[Check]:
    """The findings of probe.py, and one more if a probe has killed its process."""
    try:
        done = subprocess.run(
            python.command("scentd.doctor.probe"),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            check=False,
            env=python.environment(os.environ),
            cwd=python.DIRECTORY,
        )
        output, ended = done.stdout, "" if done.returncode in (0, 1) else f"ended with status {done.returncode}"
        ended = ended or ("" if done.stdout else done.stderr[-300:])
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ended = f"hung for {PROBE_TIMEOUT:.0f} s"
    found = [Check(*json.loads(line)) for line in output.splitlines() if line.startswith("[")]
    if ended:
        after = found[-1].name if found else "its start"
        found.append(
            Check("probe", "no", f"after {after}: {ended}", "run `python -P -m scentd.doctor.probe` and see dmesg")
        )
    return found


def check_config(path: str | None) -> tuple[Check, Config | None]:
    """Check the configuration at `path`, or at the default path if that exists."""
    named, path = path is not None, path or DEFAULT_CONFIG
    try:
        os.stat(path)
    except PermissionError:
        return Check("configuration", "warning", f"{path}: permission denied", "run doctor as root"), None
    except OSError:
        if not named:
            way_out = "start from $(scentd files scentd.example.toml)"
            return Check("configuration", "warning", f"no {path} yet", way_out), None
    try:
        config = load_config(path)
        if os.geteuid() == 0 and not identities.credentials_elsewhere(config):  # nobody else may read the key files
            identities.load(config)
        return Check("configuration", "yes", path), config
    except ConfigError as error:
        return Check("configuration", "no", "; ".join(error.problems), f"mend {path}, or what it names"), None


# ---- the offload: nothing of it is essential, the queues do all that it cannot ----


def check_pin_dir(directory: str) -> Check:
    """The daemon makes the directory itself; its nearest existing parent must be on a BPF file system."""
    name = "pin directory"
    try:
        parent = str(examine.existing_parent(Path(directory)))
        suitable = pins.is_bpffs(parent)
    except OSError as error:
        return Check(name, "warning", f"{directory}: {error.strerror}", "run as root, and with no dot in its name")
    if not suitable:
        way_out = (
            "mount -t bpf bpf /sys/fs/bpf, or choose a datapath.pin_dir on a BPF file system; else the queues do all"
        )
        return Check(name, "warning", f"{directory}: {parent} is on no BPF file system", way_out)
    return Check(name, "yes", f"{directory}, on a BPF file system")


def check_daemon(control_socket: str) -> list[Check]:
    """A running daemon's own word, because its sandbox may forbid what this process may do; nothing if none runs."""
    try:
        if not client.answers(control_socket):
            return []
        told = client.status(control_socket, 1)
    except ScentdError as error:
        return [Check("daemon", "warning", str(error), "run doctor as root: it knows what the service may do")]
    if told.offload.why_not:
        offload = Check("its offload", "warning", told.offload.why_not, "mend it and systemctl restart scentd")
    else:
        offload = Check("its offload", "yes", f"in place, by {told.offload.mechanism}")
    guard = Check("its guard", "yes", "keeps it closed" if told.guard.closed else "there, with nothing to keep closed")
    if not told.guard.connected:
        found = "none: a restart loses packets, and closed is open while our rules are not there"
        guard = Check("its guard", "warning", found, "systemctl enable --now scentd-guard")
    return [Check("daemon", "yes", f"version {told.version} runs"), offload, guard]


def check_carried(config: Config) -> list[Check]:
    """What this host carries for nodes behind it by ways that the queue does not see."""
    name = "what it forwards"
    try:
        if not bypass.has_nodes_behind(config):
            return []
        if interfaces.read_served(config.datapath.pin_dir, ()) is None:
            found = bypass.read(config)
            ok: Ok = (
                "warning" if config.datapath.offload == "off" or client.answers(config.daemon.control_socket) else "yes"
            )
            bad = [Check(name, ok, b.what, "" if ok == "yes" else b.way_out) for b in found]
            return bad or [Check(name, "yes", "no bridge or flow table that the queue does not see")]
        narrow = {b: mtu for b, mtu in bypass.unseen_bridges(bypass.links()).items() if mtu < ROOM_MIN}
    except HostError as error:
        return [Check(name, "warning", str(error), "run as root")]
    return [check_room(narrow)]


def check_room(narrow: Mapping[str, int]) -> Check:
    """Bridges, by name, whose ports carry less than full packets of guests with a scent, and how much."""
    name = "what it forwards"
    if not narrow:
        return Check(name, "yes", "the offload serves it")
    found = ", ".join(f"bridge {bridge} carries {mtu} bytes" for bridge, mtu in narrow.items())
    return Check(
        name,
        "warning",
        f"the offload serves it; {found}: packets of guests leave without a scent if it does not fit",
        f"let the uplink, the bridge and its other ports carry {ROOM_MIN} bytes, or give guests an MTU smaller by "
        f"{OVERHEAD_MAX}",
    )


def check_lockout(config: Config) -> Check:
    """Whom this host needs and could not reach while it is closed and nobody verifies."""
    name, orders = "closed", closed(config)
    if orders is None:
        return Check(name, "yes", "nothing: no peer is strict, or verify.fail is open")
    locked = [f"{use} {address}" for use, address in examine.needed_addresses() if is_closed(orders, address)]
    if locked:
        found = f"without a daemon this host cannot hear {', '.join(locked)}"
        return Check(name, "warning", found, "add [guard] exception entries for them: $(scentd files README.md)")
    return Check(name, "yes", "what strict peers send without a scent; none of what this host needs")


def check_protected(config: Config) -> list[Check]:
    """Whether policies may quarantine whatever their peers have."""
    if not any(kind_of(policy.do) == "quarantine" for policy in config.policy):
        return []
    if config.allocator.protected:
        return [Check("protected", "yes", f"no quarantine cuts off {', '.join(config.allocator.protected)}")]
    found = "nothing: a policy may quarantine any address of its peers"
    return [Check("protected", "warning", found, "name the management network and resolvers in allocator.protected")]


def is_closed(orders: Closed, address: str) -> bool:
    """Whether the guard keeps out this sender, and no exception names it."""
    ip = ip_address(address)
    if any(ip in ip_network(e.prefix) for e in orders.exceptions):
        return False
    return any(version == ip.version and first <= int(ip) <= last for version, first, last in orders.strict)
