from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd import config, plan
from scentd.decide import Firing
from scentd.plan import Actual, Confined, Desired, Isolate, Release, SetRate, Unshape

NODE, OTHER = ip_network("10.0.0.7/32"), ip_network("fd00::7/128")
QUARANTINE = config.Quarantine(timeout=60.0)
EMPTY = Desired()


def firing(do, at=0.0, targets=(), network="a", name="p", epoch=100):
    policy = config.Policy(name=name, when="cpu > 0.8", do=do)
    return Firing(at, policy, network, epoch, targets, {"cpu": 0.9}, "cpu > 0.8 [cpu=0.9]")


def bandwidth(step=10e6, floor=10e6, ceiling=25e6, start=None, interface="eth0"):
    return config.Bandwidth(interface=interface, step=step, floor=floor, ceiling=ceiling, start=start)


def policies(*dos, network="*"):
    return [config.Policy(name=f"p{i}", when="true", do=do, network=network) for i, do in enumerate(dos)]


# --- quarantine


def test_quarantine_is_extended_and_released_at_its_time():
    first = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE, OTHER))], 0.0)
    assert {p: c.until for p, c in first.desired.quarantined.items()} == {NODE: 60.0, OTHER: 60.0}
    second = plan.plan(first.desired, [firing(QUARANTINE, 10.0, (NODE,), epoch=105)], 10.0)
    assert second.desired.quarantined[NODE].until == 70.0
    (decision,) = second.decisions
    assert decision.before == "quarantined until 1970-01-01T00:01:00.000Z"
    assert decision.after == "quarantined until 1970-01-01T00:01:10.000Z"
    third = plan.plan(second.desired, [], 60.0)
    assert list(third.desired.quarantined) == [NODE]
    (release,) = third.decisions
    assert (release.action, release.target, release.after, release.policy) == ("release", "fd00::7", "free", "p")
    assert plan.plan(third.desired, [], 70.0).desired == EMPTY


def test_a_decision_says_who_and_why():
    (decision,) = plan.plan(EMPTY, [firing(QUARANTINE, 1.0, (NODE,))], 1.0).decisions
    assert (decision.at, decision.network, decision.policy, decision.epoch) == (1.0, "a", "p", 100)
    assert (decision.action, decision.target, decision.before) == ("quarantine", "10.0.0.7", "free")
    assert decision.reason == "cpu > 0.8 [cpu=0.9]"


def test_renewed_at_the_last_moment_leaves_no_gap():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))], 0.0).desired
    renewed = plan.plan(held, [firing(QUARANTINE, 60.0, (NODE,))], 60.0)
    assert [d.action for d in renewed.decisions] == ["quarantine"]


def test_a_shorter_policy_does_not_shorten():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (NODE,))], 0.0).desired
    same = plan.plan(held, [firing(config.Quarantine(timeout=5.0), 1.0, (NODE,))], 1.0)
    assert same.desired == held
    assert same.decisions == ()


def test_a_clock_set_back_does_not_lengthen():
    held = plan.plan(EMPTY, [firing(QUARANTINE, 10_000.0, (NODE,))], 10_000.0).desired
    back = plan.plan(held, [], 1000.0).desired
    assert back.quarantined[NODE].until == 1060.0


def test_every_address_and_too_many_are_refused():
    everything = plan.plan(EMPTY, [firing(QUARANTINE, 0.0, (ip_network("::/0"),))], 0.0)
    assert everything.desired == EMPTY
    assert "refused" in everything.decisions[0].after
    held = Confined(60.0, 60.0, "a", "p", 1)
    full = Desired({ip_network((i, 32)): held for i in range(plan.QUARANTINED_MAX)})
    more = plan.plan(full, [firing(QUARANTINE, 0.0, (NODE, OTHER))], 0.0)
    assert len(more.desired.quarantined) == plan.QUARANTINED_MAX
    assert ["refused" in d.after for d in more.decisions] == [True]


# --- bandwidth


def test_bandwidth_steps_within_its_bounds():
    state, seen = EMPTY, []
    for _ in range(3):
        made = plan.plan(state, [firing(bandwidth())], 0.0)
        state = made.desired
        seen.append((state.rates["a", "eth0"], [(d.before, d.after, d.target) for d in made.decisions]))
    assert seen == [
        (20e6, [("10mbit", "20mbit", "eth0")]),
        (25e6, [("20mbit", "25mbit", "eth0")]),
        (25e6, []),
    ]
    narrow = firing(bandwidth(step=-20e6))
    assert plan.plan(state, [narrow], 0.0).desired.rates["a", "eth0"] == 10e6
    assert plan.plan(EMPTY, [firing(bandwidth(start=12e6))], 0.0).desired.rates["a", "eth0"] == 22e6
    assert plan.plan(EMPTY, [firing(bandwidth(-1.0, 0.0))], 0.0).desired.rates["a", "eth0"] == plan.RATE_MIN


@given(st.floats(-1e9, 1e9), st.floats(1e4, 1e9), st.floats(0, 1e9), st.floats(0, 2e9))
def test_bandwidth_never_leaves_its_bounds(step, floor, width, current):
    before = Desired(rates={("a", "eth0"): current})
    do = bandwidth(step, floor, floor + width)
    assert floor <= plan.plan(before, [firing(do)], 0.0).desired.rates["a", "eth0"] <= floor + width


def test_networks_start_at_start_or_floor():
    widen, narrow, other = bandwidth(), bandwidth(-5e6, start=15e6), bandwidth(interface="eth1")
    started = plan.reload(EMPTY, [*policies(widen, narrow), *policies(other, network="b")], ["a", "b"], 0.0)
    assert started.desired.rates == {("a", "eth0"): 15e6, ("b", "eth0"): 15e6, ("b", "eth1"): 10e6}
    assert sorted((d.network, d.target, d.after) for d in started.decisions) == [
        ("a", "eth0", "15mbit"),
        ("b", "eth0", "15mbit"),
        ("b", "eth1", "10mbit"),
    ]


def test_reload_keeps_what_is_still_spoken_of():
    both = policies(bandwidth(), QUARANTINE)
    state = Desired({NODE: Confined(60.0, 60.0, "a", "p1", 1)}, {("a", "eth0"): 22e6})
    assert plan.reload(state, both, ["a"], 1.0).desired == state
    smaller = plan.reload(state, policies(bandwidth(ceiling=20e6), QUARANTINE), ["a"], 1.0)
    assert smaller.desired.rates == {("a", "eth0"): 20e6}
    assert [(d.before, d.after) for d in smaller.decisions] == [("22mbit", "20mbit")]
    gone = plan.reload(state, [], ["a"], 1.0)
    assert gone.desired == EMPTY
    assert {(d.action, d.target) for d in gone.decisions} == {("release", "10.0.0.7"), ("release", "eth0")}


# --- errands


def test_commands_and_webhooks_are_errands_with_their_decision():
    command = config.Command(argv=["/usr/bin/scale", "up db"], timeout=3.0, user="pg")
    webhook = config.Webhook(url="https://hooks.example.org/secret/token?x=y")
    made = plan.plan(EMPTY, [firing(command), firing(webhook)], 0.0)
    run, post = made.errands
    assert run == plan.Run(("/usr/bin/scale", "up db"), 3.0, "pg", made.decisions[0])
    assert post == plan.Post(webhook.url, 5.0, made.decisions[1])
    assert [d.after for d in made.decisions] == ["/usr/bin/scale 'up db'", "https://hooks.example.org"]
    assert made.desired == EMPTY


def test_a_bad_url_is_no_trouble_here():
    assert plan.plan(EMPTY, [firing(config.Webhook(url="http://[::1"))], 0.0).decisions[0].after == "(not a URL)"


# --- diff


def test_diff():
    held = Confined(60.0, 60.0, "a", "p", 1)
    want = Desired({NODE: held}, {("a", "eth0"): 10e6})
    assert plan.diff(Actual(), want, 10.0) == [Isolate(NODE, 50.0), SetRate("a", "eth0", 10e6)]
    assert plan.diff(Actual({NODE: 49.0}, {("a", "eth0"): 10e6 + 8}), want, 10.0) == []
    assert plan.diff(Actual({NODE: 30.0}, {("a", "eth0"): 11e6}), want, 10.0) == [
        Isolate(NODE, 50.0),
        SetRate("a", "eth0", 10e6),
    ]
    assert plan.diff(Actual({OTHER: 5.0}, {("b", "eth0"): 1e6}), EMPTY, 10.0) == [Release(OTHER), Unshape("b", "eth0")]
    assert plan.diff(Actual(), want, 60.0) == [SetRate("a", "eth0", 10e6)]  # its time is over


PREFIXES = st.sampled_from([NODE, OTHER, ip_network("10.0.0.0/24"), ip_network("10.0.0.0/8")])
SECONDS = st.dictionaries(PREFIXES, st.floats(1, 1000))


@given(SECONDS, SECONDS)
def test_diff_leads_from_any_state_to_the_wanted_one(have, want):
    after = dict(have)
    for action in plan.diff_quarantine(have, want):
        if isinstance(action, Release):
            del after[action.prefix]
        else:
            after[action.prefix] = action.seconds
    assert after.keys() == want.keys()
    assert all(after[p] == pytest.approx(want[p], abs=plan.TIMEOUT_SLACK) for p in want)
    assert plan.diff_quarantine(after, want) == []


@pytest.mark.parametrize(("rate", "text"), [(12.5e6, "12.5mbit"), (1e9, "1gbit"), (8000.0, "8kbit"), (10.0, "10bit")])
def test_rates_are_shown_as_the_configuration_reads_them(rate, text):
    assert plan.bits(rate) == text
