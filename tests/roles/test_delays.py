"""How long it takes from accepted to decided and to applied, by what began it."""

import pytest
from firings import firing

from scentd.core.allocate.actions.quarantine import QuarantineAction
from scentd.roles.delays import STEPS, Delays

NOW = 1_800_000_000.0
DO = QuarantineAction()


def test_resources_have_a_step_for_each_kind():
    delays = Delays()
    delays.record_given("replicas", firing(DO, at=NOW + 1, accepted_at=NOW), NOW + 3)
    assert by_name(delays)["replicas_given"].last == pytest.approx(3.0)


def by_name(delays: Delays):
    return {d.name: d for d in delays.status()}


def test_alarms_and_profiles_are_told_apart_and_each_step_counts_from_the_acceptance():
    delays = Delays()
    alarm = firing(DO, at=NOW + 0.01, accepted_at=NOW, alarm=True)
    usual = firing(DO, at=NOW + 0.2, accepted_at=NOW)
    delays.record_decided([alarm, usual])
    delays.record_applied([alarm], NOW + 0.05)
    told = by_name(delays)
    assert set(told) == set(STEPS)
    assert told["alarm_decided"].last == pytest.approx(0.01)
    assert told["alarm_applied"].last == pytest.approx(0.05)
    assert told["profile_decided"].last == pytest.approx(0.2)
    assert told["profile_applied"].count == 0


def test_mean_largest_and_last():
    delays = Delays()
    delays.record_decided([firing(DO, at=NOW + s, accepted_at=NOW) for s in (0.1, 0.4, 0.1)])
    step = by_name(delays)["profile_decided"]
    assert (step.count, step.largest, step.last) == (3, pytest.approx(0.4), pytest.approx(0.1))
    assert step.mean == pytest.approx(0.2)


def test_a_clock_that_was_set_back_makes_no_negative_delay():
    delays = Delays()
    delays.record_applied([firing(DO, at=NOW, accepted_at=NOW)], NOW - 3600)
    assert by_name(delays)["profile_applied"].largest == 0.0
