"""One view of what many verifiers say: each profile is verified again, and no clock of theirs counts."""

from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from scentd.core.allocate.view import PeerView
from scentd.core.fleet import views
from scentd.core.fleet.order import Serial
from scentd.core.fleet.views import HostReports, PooledView, Report
from scentd.core.profile.issue import metric_slots
from scentd.wire import bloom, keys, layout, profile

NET, EVE = (keys.identity(bytes((n,)) * 32) for n in (1, 2))
EPOCH = 1_800_000_005
NOW = EPOCH - 9.0
NODES = [ip_address("10.0.0.7"), ip_address("fd00::7")]


def signed(epoch=EPOCH, signer=NET, level=0.9) -> bytes:
    body = profile.encode_body(NET.public.key_id, epoch, 5, 0.5, {layout.METRIC_CPU: level}, bloom.make((), epoch))
    return profile.sign(signer.signer, body)


def said(epoch=EPOCH, threat=0.0, affected=(), glance=0, **more) -> Report:
    return Report("acme", signed(epoch, **more), 0.5, threat, glance or epoch, tuple(a.packed for a in affected))


@pytest.fixture
def pooled():
    return PooledView(PeerView("acme", (), metric_slots({})), [NET.public])


def test_the_newest_profile_of_all_counts(pooled):
    assert pooled.view(NOW) is None
    assert pooled.take("v1", said(EPOCH), NOW + 10) == ""
    assert pooled.take("v2", said(EPOCH + 5, level=0.1), NOW + 15) == ""
    assert pooled.take("v1", said(EPOCH), NOW + 16) == ""
    view = pooled.view(NOW + 17)
    assert (view.profile.epoch, view.profile.levels, view.received_at) == (EPOCH + 5, {"cpu": 0.1}, NOW + 15)
    assert [p.epoch for p in view.profiles] == [EPOCH + 5, EPOCH]


def test_affected_nodes_of_all_who_have_the_newest_profile(pooled):
    pooled.take("v1", said(EPOCH, affected=NODES[:1]), NOW + 10)
    pooled.take("v2", said(EPOCH, affected=NODES[1:]), NOW + 10)
    assert pooled.view(NOW + 11).affected == set(NODES)
    pooled.take("v1", said(EPOCH + 5), NOW + 15)
    assert pooled.view(NOW + 16).affected == set()
    pooled.take("v1", said(EPOCH, affected=NODES), NOW + 17)
    assert pooled.view(NOW + 18).affected == set(), "what comes late changes nothing"


def test_an_alarm_is_one_when_it_arrives(pooled):
    pooled.take("v1", said(EPOCH), NOW + 10)
    pooled.take("v1", said(EPOCH + 1, threat=1.0), NOW + 11)
    pooled.take("v2", said(EPOCH + 1, threat=1.0), NOW + 12)
    view = pooled.view(NOW + 13)
    assert (view.glance_threat, view.alarm_at) == (1.0, NOW + 11)


def test_what_wrong_clocks_said_makes_nothing_old_when_they_are_right(pooled):
    """Verifier's and allocator's were ten minutes ahead; what comes afterwards is lower for good."""
    pooled.take("v1", said(EPOCH + 600, threat=1.0, affected=NODES), NOW + 610)
    assert pooled.take("v1", said(EPOCH), NOW + 10) == ""
    view = pooled.view(NOW + 10)
    assert ([p.epoch for p in view.profiles], view.glance_threat, view.affected) == ([EPOCH], 0.0, set())
    pooled.take("v1", said(EPOCH - 5, level=0.1), NOW + 11)
    assert pooled.view(NOW + 11).profile.epoch == EPOCH, "and then the bus promises no order, as always"


def test_an_epoch_that_is_a_little_ahead_stays_the_newest(pooled):
    pooled.take("v1", said(EPOCH + 9), NOW + 9)
    pooled.take("v1", said(EPOCH), NOW + 9)
    assert pooled.view(NOW + 9).profile.epoch == EPOCH + 9


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (said(signer=EVE), "wrong_profile"),
        (replace(said(), signed=bytes(130)), "stale"),
        (replace(said(), signed=signed()[:-1] + b"\0"), "wrong_profile"),
        (replace(said(), signed=b""), "garbage"),
        (replace(said(), load=float("nan")), "garbage"),
        (replace(said(), threat=2.0), "garbage"),
        (replace(said(), affected=(b"abc",)), "garbage"),
        (replace(said(), affected=(bytes(4),) * 5000), "garbage"),
    ],
)
def test_what_a_verifier_cannot_make_us_believe(pooled, wrong, name):
    assert pooled.take("v1", wrong, NOW + 10) == name
    assert pooled.view(NOW + 11) is None


def test_reports_survive_the_way(pooled):
    pooled.take("v1", said(EPOCH, affected=NODES), NOW + 10)
    message = HostReports(Serial(1, 1), 5.0, (views.report(pooled.view(NOW + 11)),))
    assert views.decode(views.encode(message)) == message
    assert message.reports[0].signed == signed()


def test_old_news_and_news_of_tomorrow_are_none(pooled):
    assert pooled.take("v1", said(EPOCH), EPOCH + 61.0) == "stale"
    assert pooled.take("v1", said(EPOCH + 20), EPOCH + 5.0) == "future"
    assert pooled.take("v1", said(EPOCH, glance=EPOCH + 20), EPOCH + 5.0) == "future"
    assert pooled.view(EPOCH + 6.0) is None


def test_who_has_not_seen_the_alarm_yet_does_not_end_it(pooled):
    """An alarm's glance comes before its profile is whole."""
    assert pooled.take("v1", said(EPOCH, threat=1.0, glance=EPOCH + 1), NOW + 10) == ""
    assert pooled.take("v2", said(EPOCH), NOW + 11) == ""
    view = pooled.view(NOW + 12)
    assert (view.glance_threat, view.alarm_at) == (1.0, NOW + 10)
