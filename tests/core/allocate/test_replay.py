"""What policies would have decided on recorded views."""

import pytest
from allocating import COMMAND, RATE, policy, profile

from scentd.core.allocate.replay import Replay
from scentd.model import View

START = 2_000_000_000.0


def seen(cpus, peer="a", every=5.0):
    """Views of one peer, one for each value of its cpu."""
    for i, cpu in enumerate(cpus):
        yield View(peer, (profile(epoch=100 + 5 * i, cpu=cpu),), START + every * i)


def run(views, *policies):
    replay = Replay(policies, [RATE], [], ["a", "b"])
    return [(d.at - START, d.peer, d.policy) for v in views for d in replay.take(v)]


def test_a_threshold_moves_the_decision():
    cpus = [0.5, 0.65, 0.85, 0.5]
    assert run(seen(cpus), policy("cpu > 0.8")) == [(10.0, "a", "p")]
    assert run(seen(cpus), policy("cpu > 0.6")) == [(5.0, "a", "p")]
    assert run(seen(cpus), policy("cpu > 0.9")) == []


def test_a_hold_that_ends_between_two_views_of_a_peer_counts():
    (fired,) = run(seen([0.9, 0.1]), policy(hold=2.0))
    assert fired[0] == pytest.approx(2.0, abs=0.1)
    assert run(seen([0.9, 0.1]), policy(hold=6.0)) == []


@pytest.mark.parametrize("start", [0.0, 0.1, 0.3, 1 / 3])
def test_a_hold_ends_at_any_fraction_of_a_second(start):
    views = [View("a", (profile(epoch=100 + i, cpu=0.9),), START + start + i * 100.1) for i in range(2)]
    assert len(run(views, policy(hold=2.1))) == 1


def test_a_cooldown_is_kept():
    at = [d[0] for d in run(seen([0.9] * 10), policy(cooldown=12.0))]
    assert at == pytest.approx([0.0, 12.0, 24.0, 36.0], abs=0.1)


def test_a_stale_peer_is_noticed_by_age_while_another_speaks():
    views = [*seen([0.1]), *seen([0.1] * 20, "b")]
    ages = run(views, policy("age > 20.0", do=COMMAND))
    assert [d[1] for d in ages] == ["a"]
    assert ages[0][0] == pytest.approx(21.0, abs=1.5)


def test_equal_policies_decide_alike_on_views_whose_clock_goes_back():
    views = [*seen([0.9, 0.1, 0.9]), *seen([0.9, 0.1])]
    assert run(views, policy()) == run(views, policy())
