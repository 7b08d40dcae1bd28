"""Never do two profilers issue, however slow the store is, whoever is stopped, and whatever the clocks say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scentd.core.fleet.lease import HOLD, REPORTED_MAX, TAKE, TERM_MAX, Lease, LeaseRecord

INTERVAL = 2.0


class Store:
    """A record with compare-and-set."""

    def __init__(self):
        self.record, self.revision = None, 0

    def write(self, record, last):
        if last != self.revision:
            return None
        self.record, self.revision = record, self.revision + 1
        return self.revision


def look(lease, store, asked, answered, clock=1000.0):
    """One look of a keeper: what it sends at `asked` is answered at `answered`."""
    if not lease.may_act(asked):
        lease.see(store.record, store.revision, answered)
    record = lease.wanted(asked, clock)
    if record is None:
        return
    revision = store.write(record, lease.revision)
    if revision is None:
        lease.see(store.record, store.revision, answered)
    else:
        lease.wrote(record, revision, asked, answered)


def test_the_first_one_has_it_and_the_other_waits():
    store, one, other = Store(), Lease("one", INTERVAL), Lease("other", INTERVAL)
    look(one, store, 0.0, 0.1)
    look(other, store, 0.2, 0.3)
    assert one.may_act(0.4)
    assert not other.may_act(0.4)
    assert store.record == LeaseRecord("one", 1000, INTERVAL)


def test_a_standby_takes_over_within_two_intervals_of_the_last_renewal():
    store, one, other = Store(), Lease("one", INTERVAL), Lease("other", INTERVAL)
    look(one, store, 0.0, 0.0)
    now = 0.0
    while not other.may_act(now):
        look(other, store, now, now)
        now += INTERVAL / 4
    assert TAKE * INTERVAL <= now <= 2 * INTERVAL + INTERVAL / 4
    assert other.term > one.term
    assert not one.may_act(now)


def test_an_owner_of_a_longer_interval_is_waited_for():
    store, one, other = Store(), Lease("one", 10.0), Lease("other", INTERVAL)
    look(one, store, 0.0, 0.0)
    now = 0.0
    while not other.may_act(now):
        look(other, store, now, now)
        assert not (one.may_act(now) and other.may_act(now))
        now += 0.25
    assert now >= TAKE * 10.0


def test_who_gives_it_back_makes_no_one_wait():
    store, one, other = Store(), Lease("one", INTERVAL), Lease("other", INTERVAL)
    look(one, store, 0.0, 0.0)
    look(other, store, 0.1, 0.1)
    assert store.write(LeaseRecord("", one.term, INTERVAL), one.revision)
    look(other, store, 0.2, 0.2)
    assert other.may_act(0.2)


def test_a_term_rises_though_the_store_is_made_anew_and_the_clock_is_set_back():
    store, one = Store(), Lease("one", INTERVAL)
    look(one, store, 0.0, 0.0, clock=5000.0)
    assert one.term == 5000
    look(one, Store(), 100.0, 100.0, clock=10.0)
    assert one.term == 5001


def test_of_two_stores_the_older_lease_yields():
    one, other = Lease("one", INTERVAL), Lease("other", INTERVAL)
    mine, his = Store(), Store()
    look(one, mine, 0.0, 0.0, clock=1000.0)
    look(other, his, 0.5, 0.5, clock=1001.0)
    assert not other.hear("one", one.term, 0.6)
    assert one.hear("other", other.term, 0.6)
    assert not one.may_act(0.6)
    look(one, mine, 0.7, 0.7, clock=1002.0)
    assert not one.may_act(0.7), "it stays away for a while"
    for now in (2.0, 6.0, 8.0):
        assert not one.hear("other", other.term, now), "told once"
        look(one, mine, now, now, clock=1000.0 + now)
        assert not one.may_act(now), "and as long as the other is heard"
    look(one, mine, 15.0, 15.0, clock=1000.0)
    assert one.may_act(15.0), "it comes back when the other has gone"
    assert one.term > other.term, "as whom stampers believe"


def test_of_two_leases_of_one_second_one_yields():
    leases = Lease("one", INTERVAL), Lease("other", INTERVAL)
    for lease in leases:
        look(lease, Store(), 0.0, 0.0)
    one, other = leases
    assert one.term == other.term
    assert not other.hear("one", one.term, 0.5)
    assert one.hear("other", other.term, 0.5)


def test_a_standby_that_hears_the_owner_takes_over_as_soon_as_always():
    store, one, other = Store(), Lease("one", INTERVAL), Lease("other", INTERVAL)
    look(one, store, 0.0, 0.0)
    now = 0.0
    while not other.may_act(now):
        look(other, store, now, now)
        assert not other.hear("one", one.term, now)
        now += INTERVAL / 4
    assert now <= 2 * INTERVAL + INTERVAL / 4


MOVES = st.lists(
    st.tuples(
        st.sampled_from((0, 1, 2)),  # who looks
        st.floats(0.0, 1.5),  # seconds that pass before
        st.floats(0.0, 1.0),  # that the answer takes
        st.floats(0.0, 5000.0),  # his clock
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(MOVES)
def test_there_is_never_more_than_one(moves):
    store = Store()
    leases = [Lease(name, interval) for name, interval in (("a", INTERVAL), ("b", INTERVAL), ("c", 3 * INTERVAL))]
    now, terms = 0.0, []
    for who, pause, takes, clock in moves:
        now += pause
        # Between looks nobody's right changes but by time.
        assert sum(lease.may_act(now) for lease in leases) <= 1
        look(leases[who], store, now, now + takes, clock)
        now += takes
        assert sum(lease.may_act(now) for lease in leases) <= 1
        if store.record is not None and (not terms or terms[-1] != (store.record.term, store.record.instance)):
            terms.append((store.record.term, store.record.instance))
    assert [term for term, _ in terms] == sorted({term for term, _ in terms}), "each owner has a higher term"


def test_the_active_one_stops_before_anybody_takes_it():
    assert HOLD < TAKE < 2


def test_a_term_rises_above_what_receivers_have_had():
    store, one = Store(), Lease("one", INTERVAL)
    look(one, store, 0.0, 0.0, clock=10.0)
    one.raise_term(5000)
    look(one, store, 1.0, 1.0, clock=11.0)
    assert one.term == 5001
    assert one.may_act(1.0)
    look(one, store, 2.0, 2.0, clock=12.0)
    assert one.term == 5001


def test_a_report_that_is_no_term_leaves_room_for_the_next_owners():
    store, one = Store(), Lease("one", INTERVAL)
    look(one, store, 0.0, 0.0, clock=10.0)
    one.raise_term(TERM_MAX)
    look(one, store, 1.0, 1.0, clock=11.0)
    assert one.term == 10
    one.raise_term(REPORTED_MAX)
    look(one, store, 2.0, 2.0, clock=12.0)
    assert one.term == REPORTED_MAX + 1


def test_a_standby_begins_above_what_receivers_have_had():
    store, one, other = Store(), Lease("one", INTERVAL), Lease("other", INTERVAL)
    look(one, store, 0.0, 0.0, clock=10.0)
    look(other, store, 0.1, 0.1, clock=10.0)
    other.raise_term(5000)
    look(other, store, 10.0, 10.0, clock=20.0)
    assert other.term == 5001
