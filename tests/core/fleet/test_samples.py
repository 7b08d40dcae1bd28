"""What a profiler takes of other hosts: nobody speaks for another host, nor of networks that are not his."""

from collections import Counter

import msgspec
import pytest

from scentd.config.bus import BusHost
from scentd.core.fleet import samples
from scentd.core.fleet.order import Serial
from scentd.core.fleet.samples import MAX_COLLECTORS, PART_MAX, Admission, HostSamples
from scentd.model import Sample, Samples, SecurityEvent

HOST = BusHost("c", "", ["collect"], ["acme"])
NETWORKS = frozenset(("acme", "other"))


def said(network="acme", collector="", **more) -> HostSamples:
    return HostSamples(Serial(1, 1), 5.0, (Samples(network, collector, 5.0, **more),))


def admitted(message, host=HOST):
    counters = Counter()
    return Admission(NETWORKS, counters).admitted(message, host), +counters


def test_samples_survive_the_way():
    one = said(samples=(Sample("cpu", 0.5, 5.0, "n1", "db"),), events=(SecurityEvent("malware", 0.8, 5.0, 9.0),))
    assert samples.decode(samples.encode(one)) == one


@pytest.mark.parametrize(("collector", "name"), [("", "c"), ("prometheus/p", "c/prometheus/p"), ("d", "c/d")])
def test_a_collector_is_of_its_host_whatever_it_says(collector, name):
    [one], counters = admitted(said(collector=collector))
    assert one.collector == name
    assert not counters


def test_networks_of_others_are_refused():
    assert admitted(said("other")) == ([], {"not_allowed": 1})
    assert admitted(said("nobody")) == ([], {"unknown_network": 1})
    [one], _ = admitted(said("other"), BusHost("c", "", ["collect"]))
    assert one.network == "other"


@pytest.mark.parametrize(
    "sample",
    [
        Sample("cpu", 0.5, 5.0, role="db;metric=cpu"),
        Sample("cpu", 0.5, 5.0, role="a\nb"),
        Sample("cpu", 0.5, 5.0, region="x" * 64),
        Sample("cpu", 0.5, 5.0, node="x" * 256),
        Sample("cpu", 0.5, 5.0, node="\x1b[2J"),
        Sample("c" * 64, 0.5, 5.0),
    ],
    ids=repr,
)
def test_names_that_are_none_are_left_out(sample):
    [one], counters = admitted(said(samples=(sample, Sample("cpu", 0.1, 5.0))))
    assert [s.value for s in one.samples] == [0.1]
    assert counters == {"bad_name": 1}


def test_events_with_names_that_are_none_are_left_out():
    event = SecurityEvent("malware", 0.8, 5.0, 9.0, node="\x00")
    [one], counters = admitted(said(events=(event,)))
    assert one.events == ()
    assert counters == {"bad_name": 1}


@pytest.mark.parametrize("odd", [b"", b"\x00", b"\x92\x92\x01\x01\xc0", msgspec.msgpack.encode([[1, 1], [{"a": 1}]])])
def test_what_is_no_message_raises(odd):
    with pytest.raises(msgspec.MsgspecError):
        samples.decode(odd)


def test_a_host_has_a_few_collectors_however_many_names_it_finds():
    counters = Counter()
    admission = Admission(NETWORKS, counters)
    for n in range(MAX_COLLECTORS + 5):
        admission.admitted(said(collector=f"x{n}"), HOST)
    assert counters["too_many_collectors"] == 5
    assert admission.admitted(said(collector="x0"), HOST), "those that are known go on"
    assert admitted(said(collector="\n"))[1] == {"bad_name": 1}


def test_what_does_not_fit_into_one_message_goes_in_more():
    small = [Samples(f"n{n}", "", 5.0, (Sample("cpu", 0.5, 5.0),)) for n in range(10)]
    assert list(samples.parts(small)) == [tuple(small)]
    assert list(samples.parts([])) == []
    large = [Samples(f"n{n}", "", 5.0, (Sample("cpu", 0.5, 5.0),) * (PART_MAX // 2)) for n in range(3)]
    assert [len(part) for part in samples.parts(large)] == [1, 1, 1]
