"""Every setting of networks, sources, policies and actions: after a reload the running halves are as after a start.

What is compared is all that they hold, as far down as it is ours. A setting that leaves no trace there fails, too.
A new setting or kind needs another value here. tests/netns/test_reload_settings.py has the sections of the host.
"""

from __future__ import annotations

import copy
import enum
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from act.filing import FilesBackend

from scentd.act import ACTUATORS
from scentd.act.resources import RESOURCES
from scentd.collect import SOURCES
from scentd.collect.readers import Readers
from scentd.config.policy import Policy
from scentd.config.sections import Config, Network
from scentd.core.allocate.actions import ACTIONS
from scentd.core.allocate.decide import Decider
from scentd.core.profile.issue import metric_slots
from scentd.kinds import config_from
from scentd.roles.allocator import new_amounts, policies_of
from scentd.wire import keys

PEERS = [{"name": n, "public_key": "", "addresses": [f"10.{i}.0.0/16"]} for i, n in enumerate(("p", "q"))]
POLICY = {"name": "one", "when": "cpu > 0.8", "profiles": 2, "do": {"kind": "quarantine"}}

SOURCE: dict[str, dict[str, Any]] = {  # what each kind needs
    "cpu": {},
    "memory": {},
    "pressure": {"resource": "io", "metric": "cpu"},
    "bandwidth": {"interface": "lo", "capacity": "1gbit"},
    "application": {"cgroup": "a.slice", "capacity": "1gbit"},
    "tcp": {},
    "probe": {"targets": ["10.2.0.1"]},
    "eve": {"socket": "/nonexistent/eve"},
    "event": {},
    "sshd": {},
    "clamav": {},
    "prometheus": {"url": "http://127.0.0.1:9/", "series": "load", "full": 1.0},
}
ACTION: dict[str, dict[str, Any]] = {
    "quarantine": {},
    "amount": {"resource": "files", "to": 1.0},
    "command": {"argv": ["/bin/true"]},
    "webhook": {"url": "http://127.0.0.1:9/"},
}
OF_ANY_SOURCE = {"node": "10.9.0.5", "role": "db"}
# Another value for each setting.
OTHER: dict[str, Any] = {
    **{f"{kind}.{key}": value for kind in SOURCE for key, value in OF_ANY_SOURCE.items()},
    "network.name": "other",
    "network.addresses": ["10.9.0.0/16"],
    "network.interval": "9s",
    "network.lag": "20s",
    "network.steps": 5,
    "network.high": 0.9,
    "network.low": 0.1,
    "network.min_nodes": 3,
    "network.labels": ["region=x"],
    "network.regions": {"east": ["10.2.0.0/16"]},
    "network.weights": {"cpu": 3.0},
    "network.metrics": {"private": 16, "another": 17},
    "network.stale_after": "30s",
    "network.aggregate": {"cpu": "max"},
    "network.outlier_factor": 5.0,
    "network.node": [{"name": "10.9.0.5", "role": "db"}],
    "bandwidth.interface": "eth0",
    "bandwidth.capacity": "2gbit",
    "cpu.cgroup": "a.slice",
    "memory.cgroup": "a.slice",
    "pressure.resource": "memory",
    "pressure.metric": "memory",
    "pressure.stalled": "full",
    "pressure.cgroup": "a.slice",
    "bandwidth.seen_from": "outside",
    "application.cgroup": "b.slice",
    "application.capacity": "2gbit",
    "tcp.latency_full": "1s",
    "tcp.jitter_full": "1s",
    "tcp.retransmits_full": 0.5,
    "probe.targets": ["10.2.0.2:80"],
    "probe.latency_full": "1s",
    "probe.jitter_full": "1s",
    "probe.source_address": ["10.1.0.1"],
    "eve.socket": "/nonexistent/other",
    "eve.hold": "5s",
    "eve.alarm": 0.9,
    "eve.affected": "source",
    "eve.decoder": True,
    "event.hold": "5s",
    "event.alarm": 0.9,
    "sshd.hold": "5s",
    "sshd.alarm": 0.9,
    "sshd.file": "/nonexistent/log",
    "sshd.failures": 7,
    "sshd.within": "5s",
    "clamav.hold": "5s",
    "clamav.alarm": 0.9,
    "clamav.file": "/nonexistent/log",
    "prometheus.url": "http://127.0.0.1:10/",
    "prometheus.series": 'load{job="x"}',
    "prometheus.full": 2.0,
    "prometheus.metric": "private",
    "prometheus.rate": True,
    "prometheus.timeout": "1s",
    "policy.name": "other",
    "policy.when": "cpu > 0.9",
    "policy.peer": "q",
    "policy.for": "5s",
    "policy.cooldown": "5s",
    "policy.purpose": "safety",
    "policy.dry_run": True,
    "policy.matches": 2,
    "policy.profiles": 3,
    "quarantine.target": "network",
    "quarantine.timeout": "5s",
    "amount.resource": "more",
    "amount.to": "current + 1.0",
    "amount.timeout": "9s",
    "command.argv": ["/bin/false"],
    "command.timeout": "1s",
    "command.user": "root",
    "webhook.url": "http://127.0.0.1:10/",
    "webhook.timeout": "1s",
    "webhook.retry_for": "1m",
    "webhook.secret_file": "/nonexistent/secret",
}
# By daemons: test_reload_trial.py and netns/test_takeover.py (keys), netns/test_rotation.py
# (next keys), roles/test_apart.py (who signs and stamps), netns/test_fleet.py (the keys of networks signed elsewhere),
# netns/test_forwarding.py (where beacons come from), netns/test_event_sources.py (a file, which stands in place of a
# socket), netns/test_tenants.py (origins), core/allocate/test_decide.py (by). `source` and `do` are the kinds below.
ELSEWHERE = {
    "amount.by",
    "eve.file",
    "network.key_file",
    "network.next_key_file",
    "network.public_key",
    "network.next_public_key",
    "network.interface",
    "network.mark",
    "network.sign",
    "network.stamp",
    "network.beacon_source",
    "network.source",
    "policy.do",
}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setitem(RESOURCES, "files", FilesBackend)


def every_setting() -> Iterator[str]:
    both = SOURCES.keys() & ACTIONS.keys()
    sections = {"network": Network, "policy": Policy}
    sections |= {kind: entry.section for kind, entry in SOURCES.items()}
    sections |= {f"{kind} action" if kind in both else kind: action.section for kind, action in ACTIONS.items()}
    for name, section in sections.items():
        yield from (f"{name}.{field.encode_name}" for field in msgspec.structs.fields(section))


def test_every_setting_is_tried():
    assert sorted({*OTHER, *ELSEWHERE}) == sorted(every_setting())


def configured(name: str = "") -> Config:
    """A configuration with the section of this setting; with its other value if it is named."""
    section, _, key = name.partition(".")
    network: dict[str, Any] = {"name": "n", "key_file": "k", "metrics": {"private": 16}, "source": [{"kind": "cpu"}]}
    policy = copy.deepcopy(POLICY)
    kind = section.removesuffix(" action")
    part: dict[str, Any] = {"network": network, "policy": policy}.get(section, {})
    if section in SOURCE:
        part = {"kind": kind, **SOURCE[kind]}
        network["source"] = [part]
    elif kind in ACTION:
        part = {"kind": kind, **ACTION[kind]}
        policy["do"] = part
    if key:
        part[key] = OTHER[name]
    peers = [{**p, "public_key": str(keys.identity(bytes([i]) * 32).public)} for i, p in enumerate(PEERS)]
    resources = [{"name": n, "kind": "files", "maximum": 3, "directory": "/nonexistent"} for n in ("files", "more")]
    return config_from({"network": [network], "peer": peers, "policy": [policy], "resource": resources})


class Halves:
    """The running halves that know these sections, without a start: nothing is opened."""

    def __init__(self, config: Config) -> None:
        self.decider = Decider(policies_of(config), new_amounts(config))
        self.take(config)

    def take(self, config: Config) -> None:
        network = config.network[0]
        self.network, self.slots = network, metric_slots(network.metrics)  # a new NetworkProfiler has these
        self.readers = Readers(network, print)
        self.actuators = [a for kind in ACTUATORS.values() for a in kind.actuators(config)]  # a new Reconciler's

    def reload(self, config: Config) -> None:
        """As roles/collector.py, profiler.py and allocator.py do."""
        before = self.readers
        self.take(config)
        self.readers.adopt(before)
        self.decider.reload(policies_of(config), new_amounts(config))


def shape(thing: Any) -> Any:
    """All that a thing of ours holds, down to plain values; of what is not ours the type."""
    if thing is None or isinstance(thing, (bool, int, float, str, bytes, enum.Enum)):
        return thing
    if isinstance(thing, Mapping):
        return {str(k): shape(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple, set, frozenset)):
        return [shape(item) for item in thing]
    if isinstance(thing, msgspec.Struct):
        return {name: shape(getattr(thing, name)) for name in thing.__struct_fields__}
    if type(thing).__module__.startswith(("scentd.", __name__)) and not isinstance(thing, types.FunctionType):
        slots = {name for one in type(thing).__mro__ for name in getattr(one, "__slots__", ())}
        names = sorted({*getattr(thing, "__dict__", {}), *slots})
        return {name: shape(getattr(thing, name, None)) for name in names}
    if type(thing).__module__ == "ipaddress":
        return str(thing)
    return type(thing).__name__


@pytest.mark.parametrize("name", OTHER)
def test_a_reload_is_as_good_as_a_start(name):
    before, after = configured(name.partition(".")[0]), configured(name)
    halves, fresh = Halves(before), Halves(after)
    assert shape(halves) != shape(fresh), "the setting has left a trace"
    halves.reload(after)
    assert shape(halves) == shape(fresh)


def test_the_shape_sees_what_stays_behind():
    """A half that is not told of a reload is found."""
    before, after = configured("policy"), configured("policy.cooldown")
    halves, fresh = Halves(before), Halves(after)
    halves.take(after)
    assert shape(halves) != shape(fresh)
    assert Counter(map(type, Halves(before).actuators)) == Counter(map(type, fresh.actuators))
