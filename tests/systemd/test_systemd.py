"""The unit file and the example configuration are product: the unit is judged by systemd and really tried on."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import confined
import msgspec
import pytest
from compiled import bpffs
from groups import Group
from pyroute2 import netns

from scentd import cli
from scentd.collect.cgroup import UNIFIED, mounted
from scentd.config import expression, schema
from scentd.config.bus import Bus, BusHost
from scentd.config.node import Node
from scentd.config.sections import Config, DaemonSettings, Datapath, GuardException
from scentd.errors import ConfigError
from scentd.kinds import config_from, kinds, load_config
from scentd.wire import keys

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "scentd.service"
EXAMPLE = ROOT / "systemd" / "scentd.example.toml"
EXPOSURE_MAX = 27  # tenths; what is left is root, the network, eight capabilities, setuid and bpf()
OPTIONAL = re.compile(r"(?m)^#(?=[a-z_0-9]+ = |\[)")


def unit() -> dict[str, list[str]]:
    """Directive -> its values in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if re.match(r"[A-Z]\w+=", line):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def analyze(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, timeout=30, check=False)


# ---- the unit ----


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    """With a stand-in for the program: verify wants ExecStart= to exist."""
    program = tmp_path / "scentd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / "scentd.service"
    copy.write_text(UNIT.read_text().replace("/usr/bin/scentd", str(program)))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_stand_in_hides_no_mistake(tmp_path):
    copy = tmp_path / "scentd.service"
    copy.write_text(UNIT.read_text().replace("Restart=on-failure", "Restart=on-faliure"))
    assert "on-faliure" in analyze("verify", "--man=no", "--recursive-errors=no", str(copy)).stderr


def test_the_service_is_exposed_as_little_as_it_works_with():
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(UNIT))
    assert done.returncode == 0, done.stdout


def test_what_the_daemon_relies_on():
    found = unit()
    assert found["Type"] == ["notify"]
    assert int(found["WatchdogSec"][0]) >= 5
    assert found["KillMode"] == ["mixed"], "workers end in order"
    assert found["ExecReload"] == ["/usr/bin/scentd reload --config /etc/scentd/scentd.toml"]
    assert found["ExecStopPost"] == ["/usr/bin/scentd cleanup --unless-restarting %n --config /etc/scentd/scentd.toml"]
    assert found["Restart"] == ["on-failure"]
    assert found["StartLimitIntervalSec"] == ["0"], "fail = closed must not end in a service that stays down"
    assert found["RestartForceExitStatus"] == ["75"], "the way to a newer program without a gap"
    assert found["SuccessExitStatus"] == ["75"], "making room is no failure"


@pytest.mark.parametrize(("directive", "command"), [("ExecStart", "run_daemon"), ("ExecStopPost", "clean_up")])
def test_the_commands_of_the_unit_exist(directive, command):
    program, *argv = shlex.split(unit()[directive][0])
    assert program == "/usr/bin/scentd"
    arguments = cli.parser().parse_args(argv)
    assert arguments.run.__name__ == command
    assert arguments.config == cli.CONFIG


def test_the_units_directories_are_the_configurations_defaults():
    found, daemon = unit(), DaemonSettings()
    assert daemon.state_dir == f"/var/lib/{found['StateDirectory'][0]}"
    assert str(Path(daemon.control_socket).parent) == f"/run/{found['RuntimeDirectory'][0]}"
    assert f"-{Path(Datapath().pin_dir).parent}" in found["ReadWritePaths"]


# ---- the unit's confinement, worn by the real parts ----


@pytest.fixture
def namespace():
    name = f"scsysd{os.getpid()}"  # other runs may go on beside this one
    netns.create(name)
    yield name
    netns.remove(name)


@pytest.mark.netns
def test_every_part_works_within_the_units_confinement(namespace):
    """Queue, rules, sets, quarantine, HTB, `ip rule`: the probes of `scentd doctor`, confined as the unit says."""
    code = "import json; from scentd.doctor import probe; print(json.dumps([list(f) for f in probe.findings()]))"
    done = confined.run(unit(), [sys.executable, "-c", code], namespace)
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert len(findings) > 8
    assert [f for f in findings if f[1] == "no"] == []
    assert [f[1] for f in findings if f[0] == "offload"] == ["yes"], findings


@pytest.mark.netns
def test_a_policys_command_changes_user_and_is_ended_in_time(namespace):
    code = """
import os, sys, time
from scentd.act import command
from scentd.errors import HostError
assert command.run(["/usr/bin/test", "-r", "/etc/shadow"], b"", 5, "nobody") == 1
assert command.run(["/usr/bin/test", "-r", "/etc/passwd"], b"", 5, "nobody") == 0
try:
    command.run(["/bin/sleep", "60"], b"", 0.2, "nobody")
except HostError as error:
    print(error)
"""
    done = confined.run(unit(), [sys.executable, "-c", code], namespace)
    assert "killed after 0.2 s" in done.stdout, done.stderr


def test_a_socket_can_be_given_to_a_group(tmp_path):
    code = f"import os; open({str(tmp_path / 'x')!r}, 'w'); os.chown({str(tmp_path / 'x')!r}, -1, 4)"
    done = confined.run(unit(), [sys.executable, "-c", code])
    assert (tmp_path / "x").stat().st_gid == 4, done.stderr


@pytest.mark.netns
@pytest.mark.parametrize(
    ("lost", "probe"),
    [("CAP_NET_ADMIN", "import scentd.doctor.probe as p; print(p.run_probe('', p.nfqueue)[1])"), ("CAP_KILL", None)],
)
def test_no_capability_is_there_for_nothing(namespace, lost, probe):
    """The two above pass because of these, not in spite of them."""
    less = unit() | {"CapabilityBoundingSet": [unit()["CapabilityBoundingSet"][0].replace(lost, "")]}
    code = probe or "from scentd.act import command; command.run(['/bin/sleep', '60'], b'', 0.2, 'nobody')"
    done = confined.run(less, [sys.executable, "-c", code], namespace)
    assert "no\n" in done.stdout or "PermissionError" in done.stderr, (done.stdout, done.stderr)


@pytest.mark.netns
def test_probes_leave_within_the_units_confinement(namespace):
    """ICMP by a raw socket, as a new namespace lets nobody have the other kind, and TCP."""
    code = """
from ipaddress import ip_address
from scentd.collect.echo import Round, Target, echo_socket
round = Round([Target(ip_address("127.0.0.1")), Target(ip_address("::1")), Target(ip_address("127.0.0.1"), 9)], {})
round.run(5.0)
print(echo_socket(4)[1], len(round.trips))
"""
    subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
    done = confined.run(unit(), [sys.executable, "-c", code], namespace)
    assert done.stdout == "True 3\n", done.stderr
    less = unit() | {"CapabilityBoundingSet": [unit()["CapabilityBoundingSet"][0].replace("CAP_NET_RAW", "")]}
    done = confined.run(less, [sys.executable, "-c", code], namespace)
    assert "ICMP is not permitted; allow CAP_NET_RAW" in done.stderr


PINNING = """
import os, sys
from scentd.doctor import probe
from scentd.datapath.offload import pins
from scentd.datapath.offload.libbpf import Object
with Object(str(probe.OBJECTS[0])) as stamp:
    stamp.load()
    os.mkdir(sys.argv[1])
    pins.pin(stamp.map_fd("counters"), sys.argv[1] + "/counters")
os.close(pins.get(sys.argv[1] + "/counters"))
pins.unpin(sys.argv[1] + "/counters")
os.rmdir(sys.argv[1])
print("pinned and unpinned")
"""


@pytest.mark.netns
def test_maps_are_pinned_within_the_units_confinement(tmp_path):
    subprocess.run(["mount", "-t", "bpf", "scentd-test", str(tmp_path)], check=True)
    try:
        done = confined.run(unit(), [sys.executable, "-c", PINNING, str(tmp_path / "scentd")])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert done.stdout == "pinned and unpinned\n", done.stderr


ATTACHING = """
import sys
from pathlib import Path
from scentd.datapath.offload.applications import Applications
counter = Applications(sys.argv[1]).open()
print(counter.read(Path(sys.argv[2]))[1:])
counter.close()
"""


@pytest.mark.netns
@pytest.mark.skipif(UNIFIED not in mounted(), reason="needs a mounted cgroup v2, which has programs")
def test_a_program_comes_to_a_cgroup_within_the_units_confinement(tmp_path):
    with bpffs(tmp_path / "bpf") as directory, Group("unit") as group:
        argv = [sys.executable, "-c", ATTACHING, str(directory / "scentd"), str(group.paths[UNIFIED])]
        done = confined.run(unit(), argv)
        assert done.stdout == "(0, 0)\n", done.stderr
        less = unit() | {"CapabilityBoundingSet": [unit()["CapabilityBoundingSet"][0].replace("CAP_NET_ADMIN", "")]}
        done = confined.run(less, argv)
        assert "needs CAP_BPF, CAP_NET_ADMIN" in done.stderr


@pytest.mark.netns
@pytest.mark.parametrize(
    ("directive", "lost"),
    [("CapabilityBoundingSet", "CAP_BPF"), ("CapabilityBoundingSet", "CAP_PERFMON"), ("SystemCallFilter", "bpf")],
)
def test_the_offload_needs_all_that_the_unit_grants_it(namespace, directive, lost):
    less = unit() | {directive: [" ".join(w for w in line.split() if w != lost) for line in unit()[directive]]}
    done = confined.run(
        less, [sys.executable, "-c", "from scentd.doctor import probe; print(probe.offload()[1])"], namespace
    )
    assert done.stdout == "warning\n", done.stderr


def test_what_the_unit_forbids_is_forbidden():
    """The confinement of these tests is no decoration: it refuses a new namespace, and a packet socket."""
    code = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x40000000), ctypes.get_errno() == errno.EPERM)
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    done = confined.run(unit(), [sys.executable, "-c", code])
    assert done.stdout.split() == ["-1", "True", "EAFNOSUPPORT"], done.stderr


# ---- the example configuration ----


def example(optional: bool = False) -> dict:
    text = EXAMPLE.read_text().replace(
        "PUT THE PEER'S PUBLIC KEY HERE", str(keys.identity(secrets.token_bytes(32)).public)
    )
    return tomllib.loads(OPTIONAL.sub("", text) if optional else text)


@pytest.mark.parametrize("optional", [False, True])
def test_the_example_loads(optional):
    loaded = config_from(example(optional))
    assert loaded.network
    assert loaded.peer
    known = [*expression.known_variables(set()), *expression.BOUNDS]
    assert [mistake for policy in loaded.policy for mistake in expression.check_when(policy.when, known)] == []


def test_the_example_says_where_the_peers_key_goes():
    with pytest.raises(ConfigError) as raised:
        load_config(EXAMPLE)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith("peer[0].public_key: ")


def sections(hint: typing.Any) -> dict[str, type[schema.Table]]:
    """The structs that a field may hold: by kind, or one under ""."""
    kind, extra = schema.unwrap(hint)
    if "kinds" in extra:
        return dict(kinds()[extra["kinds"]])
    if typing.get_origin(kind) is list:
        return sections(typing.get_args(kind)[0])
    return {"": kind} if isinstance(kind, type) and issubclass(kind, schema.Table) else {}


def fields(struct: type[schema.Table]):
    """(name in the file, the structs that it may hold) of each field."""
    hints = typing.get_type_hints(struct, include_extras=True)
    return [(field.encode_name, sections(hints[field.name])) for field in msgspec.structs.fields(struct)]


def tables(data: dict, struct: type[schema.Table]):
    """Every (table of the file, its struct)."""
    yield data, struct
    for name, variants in fields(struct):
        value = data.get(name)
        for item in value if isinstance(value, list) else [value]:
            if variants and isinstance(item, dict):
                yield from tables(item, variants.get(item.get("kind", "")) or variants[""])


def all_tables(struct: type[schema.Table]) -> set[type[schema.Table]]:
    """The struct and all that its fields may hold."""
    inner = (variant for _, variants in fields(struct) for variant in variants.values())
    return {struct}.union(*map(all_tables, inner))


def test_the_example_has_every_key_of_every_section():
    """A key may be left out only where another table of its kind in the file has it, or of the kinds that share it."""
    missing = {
        (owner(kind, field.encode_name), field.encode_name)
        for kind in all_tables(Config)
        for field in msgspec.structs.fields(kind)
    }
    for data, kind in tables(example(optional=True), Config):
        missing -= {(owner(kind, key), key) for key in data}
    assert missing == set()


def owner(kind: type[schema.Table], key: str) -> str:
    """The name of the struct that declares a key: the kind itself, or its base."""
    bases = [base for base in kind.__mro__ if isinstance(base, type) and issubclass(base, schema.Table)]
    return next(base.__name__ for base in reversed(bases) if base is kind or key in schema.members(base)[1])


def test_what_the_example_calls_a_default_is_the_default():
    """Each `#key = value` line: the value equals the schema's, or the comment above says it is an example."""
    shown, given = example(optional=True), example()
    wrong = []
    optional = [
        (data, kind) for data, kind in tables(shown, Config) if kind not in (GuardException, Node, Bus, BusHost)
    ]
    for (data, kind), (active, _) in zip(optional, tables(given, Config), strict=True):
        problems: list[str] = []
        made = schema.convert(data, kind, "", problems, kinds())
        assert problems == []
        for field in msgspec.structs.fields(kind):
            key = field.encode_name
            if sections(schema.members(kind)[0][field.name]):
                continue  # a table is shown as an example
            if key in data and key not in active and field.default is not None:
                default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
                if getattr(made, field.name) != default:
                    wrong.append((kind.__name__, key, data[key], default))
    assert wrong == []
