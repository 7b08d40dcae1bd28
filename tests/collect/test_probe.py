"""What a reader makes of made-up round trips. Real ones: test_echo.py, tests/netns/test_regions.py."""

import math
from ipaddress import ip_address

import pytest
from readings import SETTING

from scentd.collect import probe
from scentd.collect.echo import Target
from scentd.collect.probe import Path, ProbeReader, ProbeSource, parse_target
from scentd.collect.source import Setting
from scentd.errors import ConfigError
from scentd.kinds import config_from
from scentd.prefix import PrefixMap

A, B, C, D = (Target(ip_address(f"10.2.0.{n}")) for n in range(1, 5))


class Clock:
    """Rounds that are made up, and the time of the reader."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.trips = {}
        self.rounds = []
        clock = self

        class Made:
            unreachable, foreign = 1, 2

            def __init__(self, targets, sources):
                clock.rounds.append((list(targets), sources))
                self.trips = dict(clock.trips)

            def run(self, timeout):
                clock.timeout = timeout

        monkeypatch.setattr(probe, "Round", Made)
        monkeypatch.setattr(probe.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def reader(*targets, regions=(), **changes):
    source = ProbeSource(targets=[str(t.address) for t in targets], latency_full=0.1, jitter_full=0.01, **changes)
    return ProbeReader(source, Setting((), SETTING.on_alarm, PrefixMap(regions)))


def read(it, clock, **trips):
    clock.trips = {globals()[name]: trip for name, trip in trips.items()}
    clock.now += 5.0
    return {(s.metric, s.region): round(s.value, 6) for s in it.read(clock.now)}


def path(*trips):
    made = Path()
    for trip in trips:
        made.add(trip)
    return made


@pytest.mark.parametrize(
    ("trips", "latency"),
    [
        ([], None),
        ([0.01], None),
        ([None], None),
        ([None, 0.02], 0.02),
        ([0.02, None], 0.02),
        ([None, None], math.inf),
        ([0.01, None, 0.03], 0.03),
        ([0.01, None, None], math.inf),
        ([None, None, 0.01, 0.03, 0.02], 0.02),
    ],
)
def test_the_latency_is_the_median_of_the_last_three(trips, latency):
    assert path(*trips).latency() == latency


@pytest.mark.parametrize(
    ("trips", "jitter"),
    [
        ([], None),
        ([0.01, None], None),
        ([0.01, 0.03], 0.02),
        ([0.01, None, 0.03, 0.03], 0.01),
        ([9.0, *[0.01] * 8], 0.0),
    ],
)
def test_the_jitter_is_of_successive_answers(trips, jitter):
    assert path(*trips).jitter() == (pytest.approx(jitter) if jitter is not None else None)


def test_regions_have_the_median_of_their_targets(clock):
    it = reader(A, B, C, D, regions=[("10.2.0.0/30", "east"), ("10.2.0.4", "west")])
    assert read(it, clock, A=0.01, B=0.02, C=0.03, D=0.09) == {}
    assert read(it, clock, A=0.01, B=0.022, C=0.03) == {
        ("latency", ""): 0.2,
        ("jitter", ""): 0.0,
        ("latency", "east"): 0.2,
        ("jitter", "east"): 0.0,
        ("latency", "west"): 0.9,
    }
    assert read(it, clock, A=0.01, B=0.022, C=0.03)["latency", "west"] == 1.0  # two lost of three
    it.read(0.0)
    assert it.counts() == {"probe_sent": 12, "probe_lost": 2, "probe_unreachable": 3, "probe_foreign": 6}
    assert clock.timeout == 0.1


def test_a_target_is_probed_once_a_second_at_most(clock):
    it = reader(A, source_address=["10.1.0.1", "fd00::1"])
    read(it, clock, A=0.01)
    before = read(it, clock, A=0.02)
    clock.now -= 4.5
    assert read(it, clock, A=0.09) == before
    assert clock.rounds == [([A], {4: "10.1.0.1", 6: "fd00::1"})] * 2


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.2.0.1", A),
        ("10.2.0.1:443", Target(ip_address("10.2.0.1"), 443)),
        ("fd00::1", Target(ip_address("fd00::1"))),
        ("[fd00::1]:443", Target(ip_address("fd00::1"), 443)),
    ],
)
def test_targets(text, target):
    assert parse_target(text) == target


def load(**changes):
    source = {"kind": "probe", "targets": ["10.2.0.1"], **changes}
    return config_from({"network": [{"name": "n", "key_file": "k", "source": [source]}]})


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"targets": []}, "targets: name 1 to 64"),
        ({"targets": [f"10.2.0.{n}" for n in range(65)]}, "targets: name 1 to 64"),
        ({"targets": ["10.2.0.1", "10.2.0.1"]}, r"targets\[1\]: '10.2.0.1' stands there twice"),
        *(
            ({"targets": [text]}, r"targets\[0\]: .*write \"10.2.0.1\", \"10.2.0.1:443\" or")
            for text in (
                "host",
                "host:1",
                "10.2.0.1:",
                "10.2.0.1:0",
                "10.2.0.1:65536",
                "10.2.0.1:²",
                "fe80::1%eth0",
                "",
            )
        ),
        ({"latency_full": "0s"}, "latency_full: must be more than 0"),
        ({"source_address": ["x"]}, r"source_address\[0\]: 'x' is no address"),
        ({"source_address": ["10.1.0.1", "10.1.0.2"]}, "source_address: two addresses of one IP version"),
    ],
)
def test_mistakes(changes, mistake):
    with pytest.raises(ConfigError, match=rf"network\[0\].source\[0\].{mistake}"):
        load(**changes)


def test_a_right_one_loads():
    assert load(targets=["10.2.0.1", "10.2.0.1:443"], source_address=["10.1.0.1", "fd00:1::1"])
