"""From a Statement to what each peer's stamper needs: sealed for that peer, signed by us, an epoch once."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from scentd.core.profile.issue import IssuedPair, Issuer, early_wait, lifetime, metric_slots, next_epoch
from scentd.model import Statement
from scentd.wire import bloom, keys, layout, profile, tag

ME, BOB, EVE = (keys.identity(bytes((n,)) * 32) for n in (1, 2, 3))
EPOCH = 1_800_000_005
NODE = ip_address("10.0.0.7")


def issuer(slots=None) -> Issuer:
    pairs = [IssuedPair("me", "bob", ME, BOB.public), IssuedPair("me", "eve", ME, EVE.public)]
    return Issuer(ME, pairs, metric_slots(slots or {}))


def statement(**more) -> Statement:
    fields = {"interval": 5, "overall": 0.5, "levels": {"cpu": 0.9}, "items": frozenset(("region=eu-west",))}
    return Statement(**(fields | more))


def opened(outgoing, receiver, epoch=EPOCH):
    secret = keys.pair_secret(receiver, ME.public)
    derived = keys.direction_keys(secret, ME.public, receiver.public, keys.period_of(epoch))
    sealed = b"".join(outgoing.fragments)
    return profile.open_sealed(sealed, derived, ME.public.verifier(), ME.public.key_id, epoch), derived


def test_each_peer_can_open_its_own_only():
    for_bob, for_eve = issuer().issue(statement(), EPOCH)
    assert [(o.network, o.peer) for o in (for_bob, for_eve)] == [("me", "bob"), ("me", "eve")]
    body, derived = opened(for_bob, BOB)
    assert body.levels == {layout.METRIC_CPU: 0.9}
    assert body.overall == 0.5
    assert derived.tag == for_bob.tag_key
    assert opened(for_bob, EVE)[0] == layout.PROFILE_ERROR_SIGNATURE


def test_the_glance_is_masked_and_right():
    made, _ = issuer().issue(statement(levels={"cpu": 0.9, "threat": 1.0}), EPOCH)
    _, derived = opened(made, BOB)
    for i, (masked, fragment) in enumerate(zip(made.glances, made.fragments, strict=True)):
        mask = tag.glance_mask(derived.glance, tag.head(0, masked, made.key_id, EPOCH, i, fragment))
        assert tag.glance_levels(masked ^ mask) == (8 / 15, 1.0)
    assert len(set(made.glances)) > 1


def test_affected_nodes_are_pseudonyms_of_the_pair():
    """Invariant 9: each peer finds the node under its own pseudonym; under the other's it is not there."""
    for_bob, for_eve = issuer().issue(statement(affected=frozenset((NODE,))), EPOCH)
    for made, receiver, other in ((for_bob, BOB, EVE), (for_eve, EVE, BOB)):
        body, _ = opened(made, receiver)
        own, foreign = (
            profile.event_items(keys.pseudonym_key(keys.pair_secret(r, ME.public), ME.public, r.public), (NODE,))
            for r in (receiver, other)
        )
        assert all(bloom.contains(body.bloom, EPOCH, item) for item in own)
        assert not all(bloom.contains(body.bloom, EPOCH, item) for item in foreign)
        assert bloom.contains(body.bloom, EPOCH, "region=eu-west")


def test_no_level_without_a_slot():
    made = issuer({"queue": 16}).issue(statement(levels={"queue": 0.5, "unnamed": 0.7}), EPOCH)[0]
    assert opened(made, BOB)[0].levels == {16: 0.5}


def test_no_overall_is_unknown():
    made = issuer().issue(statement(overall=None), EPOCH)[0]
    assert opened(made, BOB)[0].overall is None


def test_keys_change_with_the_period():
    one, other = IssuedPair("me", "bob", ME, BOB.public), IssuedPair("me", "bob", ME, BOB.public)
    assert one.keys_at(EPOCH).tag == other.keys_at(EPOCH).tag
    assert one.keys_at(EPOCH).tag != one.keys_at(EPOCH + layout.PERIOD).tag
    assert one.keys_at(EPOCH).seal == other.keys_at(EPOCH).seal


@pytest.mark.parametrize(("interval", "seconds"), [(1, 18), (5, 30), (10, 45), (13, 54), (20, 55), (55, 55), (60, 60)])
def test_it_expires(interval, seconds):
    """Three intervals and 15 s; but a receiver takes nothing that is over 60 s old."""
    assert issuer().issue(statement(interval=interval), EPOCH)[0].expires == EPOCH + seconds


@pytest.mark.parametrize("interval", range(1, 21))
def test_it_outlives_a_takeover(interval):
    """Two intervals, and 9 s in which the lease's servers may stand still."""
    assert lifetime(interval) > 2 * interval + 9


def test_it_says_how_far_stampers_may_lag():
    for lag in (0, 20, layout.LAG_MAX):
        body, _ = opened(issuer().issue(statement(lag=lag), EPOCH)[0], BOB)
        assert body.lag == lag


def test_verified_finds_what_is_wrong():
    made = issuer().issue(statement(), EPOCH)[0]
    assert issuer().verify(made)
    spoilt = (bytes(13), *made.fragments[1:])
    assert not issuer().verify(replace(made, fragments=spoilt))
    assert not issuer().verify(replace(made, peer="nobody"))


@given(st.lists(st.tuples(st.floats(0, 2**31), st.booleans()), min_size=1, max_size=50))
def test_epochs_rise_unless_the_clock_was_wrong(story):
    """Whatever the clock does: an epoch is above the last one, or that one is ahead of what any receiver takes."""
    issued = 0
    for now, urgent in story:
        made = next_epoch(now, issued, 10.0, urgent)
        assert made.voided == (issued > now + 10)
        if made.epoch is None:
            assert now < issued <= now + 10
            continue
        assert made.voided or made.epoch > issued
        assert made.epoch <= now + 10
        issued = made.epoch


@pytest.mark.parametrize(
    ("now", "issued", "urgent", "want"),
    [
        (100.9, 0, False, (100, False)),
        (100.0, 100, False, (101, False)),
        (200.0, 100, False, (200, False)),
        (100.0, 108, False, (None, False)),  # the last one goes on until the clock has caught up
        (100.0, 108, True, (109, False)),  # an alarm does not wait
        (100.0, 110, True, (None, False)),  # it would be refused
        (100.0, 111, False, (100, True)),
        (100.0, 700, True, (100, True)),
    ],
)
def test_next_epoch(now, issued, urgent, want):
    assert next_epoch(now, issued, 10.0, urgent) == want


@pytest.mark.parametrize(
    ("now", "issued", "max_future", "want"),
    [
        (100.5, 99, 10.0, 0.0),  # its second has begun
        (100.5, 100, 10.0, 0.0),
        (100.5, 101, 10.0, 0.0),
        (100.5, 102, 10.0, 0.5),  # three alarms in a second: this one waits
        (100.5, 101, 1.0, 0.5),  # receivers like us would refuse it
        (100.5, 108, 10.0, 6.5),  # the clock was wrong: the pause is over before
    ],
)
def test_an_alarm_need_not_wait_for_its_second(now, issued, max_future, want):
    assert early_wait(now, issued, max_future) == pytest.approx(want)


@given(st.floats(100, 200), st.lists(st.floats(0, 0.7), min_size=1, max_size=50))
def test_however_many_alarms_there_are_their_epochs_stay_within_two_seconds(now, gaps):
    issued = int(now)
    for gap in gaps:
        now += gap
        now += early_wait(now, issued, 10.0)
        made = next_epoch(now, issued, 10.0, urgent=True)
        assert made.epoch > issued
        assert made.epoch <= now + 2.001
        issued = made.epoch
