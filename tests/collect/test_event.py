"""What `scentd event` reports, at its source."""

import pytest

from scentd.collect.event import ReportedReader, ReportedSource
from scentd.collect.source import CollectError, Setting
from scentd.model import EventReport
from scentd.prefix import prefixes

OWN = prefixes(["10.0.0.0/8", "fd00::/16"])


def reader(own=OWN):
    return ReportedReader(ReportedSource(), Setting(own, lambda event: None))


def test_a_report_is_an_event_for_as_long_as_it_says():
    made = reader()
    said = EventReport("n", 0.8, "malware", hold=5.0, node="fd00:0::5", detail="x\ny")
    event, begins = made.report(said, 1000.0)
    assert begins
    assert (event.kind, event.severity, event.node, event.at, event.until) == (
        "malware",
        0.8,
        "fd00::5",
        1000.0,
        1005.0,
    )
    assert "\n" not in event.detail
    assert made.events(1000.0, 0.0) == [event]
    assert not made.report(said, 1001.0)[1]
    assert made.counts() == {"event_summed": 0, "event_taken": 2, "event_not_ours": 0}


def test_without_a_time_it_is_the_source_s():
    event, _ = reader().report(EventReport("n", 0.8), 1000.0)
    assert (event.until, event.node) == (1060.0, "")


@pytest.mark.parametrize("node", ["192.0.2.1", "db-1", "10.0.0.0/8", "10.0.0.5 "])
def test_a_node_is_an_address_of_the_network(node):
    made = reader()
    with pytest.raises(CollectError, match=r"write an address of the network \(10\.0\.0\.0/8, fd00::/16\)"):
        made.report(EventReport("n", 0.8, node=node), 0.0)
    assert made.counts()["event_not_ours"] == 1
    assert made.events(0.0, 0.0) == []


def test_without_prefixes_any_address_will_do():
    assert reader(own=()).report(EventReport("n", 0.8, node="192.0.2.1"), 0.0)[0].node == "192.0.2.1"
