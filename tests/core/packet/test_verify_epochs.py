"""What the verifier takes for fresh: ages, grace, what workers share."""

from dataclasses import replace

import carriers
import msgspec
import wire_setup
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import TCP4, TCP6, at_epoch, quick, verdict

from scentd.core.packet import verify
from scentd.core.tables import EPOCH_ROW, Incoming
from scentd.wire import ip, layout


def test_an_epoch_ages():
    one = wire_setup.verifier()
    for now, wanted in (
        (0, "accepted"),
        (60, "accepted"),
        (61, "stale"),
        (5, "accepted"),
        (-10, "accepted"),
        (-11, "future"),
    ):
        one.tick(wire_setup.EPOCH + now)
        assert layout.VERDICTS[verdict(one.verify(TCP4))] == wanted, now


def test_a_future_epoch_does_not_become_the_highest():
    one = wire_setup.verifier()
    assert verdict(one.verify(at_epoch(int(wire_setup.NOW) + 11))) == layout.VERDICT_FUTURE
    assert verdict(one.verify(TCP4)) == layout.VERDICT_ACCEPTED


def test_keys_of_no_known_period_are_stale():
    table = verify.VerifyTable(incoming=wire_setup.VERIFY_TABLE.incoming, max_age=1e9)
    one = wire_setup.verifier(table=table)
    assert verdict(one.verify(at_epoch((wire_setup.PERIOD - 1) * layout.PERIOD))) == layout.VERDICT_ACCEPTED
    assert verdict(one.verify(at_epoch((wire_setup.PERIOD - 1) * layout.PERIOD - 1))) == layout.VERDICT_STALE


def test_the_epoch_before_has_its_grace_and_no_older_one():
    one = wire_setup.verifier()
    first, second, third = (at_epoch(wire_setup.EPOCH + n) for n in (-10, -5, 0))
    for now, packet in ((-10, first), (-5, second), (0, third)):
        one.tick(wire_setup.EPOCH + now)
        assert isinstance(one.verify(packet), bytes)
    one.tick(wire_setup.EPOCH + 2)
    assert isinstance(one.verify(second), bytes)
    assert verdict(one.verify(first)) == layout.VERDICT_REPLAYED_EPOCH
    one.tick(wire_setup.EPOCH + 2.1)
    assert verdict(one.verify(second)) == layout.VERDICT_ACCEPTED  # believed until the second is over
    one.tick(wire_setup.EPOCH + 3)
    assert verdict(one.verify(second)) == layout.VERDICT_REPLAYED_EPOCH
    assert isinstance(one.verify(third), bytes)


def test_of_epochs_of_one_second_the_one_before_all_has_its_grace():
    """An alarm's epoch may follow another at once; packets of the one before are still on their way then."""
    one = wire_setup.verifier()
    older, before, regular, alarm = (at_epoch(wire_setup.EPOCH + n) for n in (-10, -5, 0, 1))
    for now, packet in ((-5, before), (0, regular), (0.05, alarm)):
        one.tick(wire_setup.EPOCH + now)
        assert isinstance(one.verify(packet), bytes)
    one.tick(wire_setup.EPOCH + 2)
    assert all(isinstance(one.verify(packet), bytes) for packet in (before, regular, alarm))
    assert verdict(one.verify(older)) == layout.VERDICT_REPLAYED_EPOCH
    one.tick(wire_setup.EPOCH + 3)
    assert {verdict(one.verify(packet)) for packet in (before, regular)} == {layout.VERDICT_REPLAYED_EPOCH}


def test_the_first_two_epochs_of_one_second_have_grace_for_the_first():
    one = wire_setup.verifier()
    first, second = (at_epoch(wire_setup.EPOCH + n) for n in (0, 1))
    for packet in (first, second, first):
        assert isinstance(one.verify(packet), bytes)


def test_the_first_epoch_seen_has_none_before_it():
    one = wire_setup.verifier()
    assert isinstance(one.verify(TCP4), bytes)
    assert verdict(one.verify(at_epoch(wire_setup.EPOCH - 1))) == layout.VERDICT_REPLAYED_EPOCH


def test_a_new_epoch_is_noticed_by_the_cache():
    """What was believed under the older epoch is checked anew as soon as a newer one is seen."""
    one = wire_setup.verifier(table=verify.VerifyTable(incoming=wire_setup.VERIFY_TABLE.incoming, grace=0.0))
    assert isinstance(one.verify(TCP4), bytes)
    assert isinstance(one.verify(at_epoch(wire_setup.EPOCH + 1, TCP6)), bytes)
    one._epochs[1] -= 1  # grace of 0 is over
    assert verdict(one.verify(TCP4)) == layout.VERDICT_REPLAYED_EPOCH


def test_a_restart_opens_no_replay_window():
    """The highest epochs outlive the process; so does the moment from which grace runs."""
    epochs = [0] * 4 * EPOCH_ROW
    assert isinstance(wire_setup.verifier(epochs=epochs).verify(TCP4), bytes)
    old = at_epoch(wire_setup.EPOCH - 5)
    again = wire_setup.verifier(wire_setup.NOW + 5, epochs)
    assert verdict(again.verify(old)) == layout.VERDICT_REPLAYED_EPOCH
    assert isinstance(again.verify(at_epoch(wire_setup.EPOCH + 5)), bytes)
    assert isinstance(again.verify(TCP4), bytes)  # the epoch before, known from the file
    assert verdict(again.verify(old)) == layout.VERDICT_REPLAYED_EPOCH  # in the new one's grace, but older than before


def test_two_workers_share_the_highest_epoch():
    epochs = [0] * 4 * EPOCH_ROW
    one, other = wire_setup.verifier(epochs=epochs), wire_setup.verifier(epochs=epochs)
    old, new = at_epoch(wire_setup.EPOCH - 5), TCP4
    assert isinstance(other.verify(old), bytes)
    assert isinstance(one.verify(new), bytes)
    assert isinstance(other.verify(old), bytes)  # in grace: it is the one before for this worker, too
    for worker in (one, other):
        worker.tick(wire_setup.NOW + 3)
        assert verdict(worker.verify(old)) == layout.VERDICT_REPLAYED_EPOCH
        assert isinstance(worker.verify(new), bytes)


def test_grace_is_for_the_epoch_before_in_every_worker():
    """Whichever worker raised the highest, and whatever a worker has seen of the pair itself."""
    epochs = [0] * 4 * EPOCH_ROW
    idle, one, other = (wire_setup.verifier(wire_setup.NOW - n, epochs) for n in (2, 1, 0))
    first, second, third = (at_epoch(wire_setup.EPOCH + n) for n in (-10, -5, 0))
    assert isinstance(idle.verify(first), bytes)
    assert isinstance(one.verify(second), bytes)
    assert isinstance(other.verify(third), bytes)
    for worker in (one, other, idle, wire_setup.verifier(epochs=epochs)):
        worker.tick(wire_setup.NOW + 1)
        assert verdict(worker.verify(first)) == layout.VERDICT_REPLAYED_EPOCH
        assert isinstance(worker.verify(second), bytes)
        assert isinstance(worker.verify(third), bytes)
        assert verdict(worker.verify(first)) == layout.VERDICT_REPLAYED_EPOCH


def test_a_clock_beyond_32_bits_ends_nothing():
    """In 2106, or where somebody has set it: an epoch has 32 bits, and so has the second at which it is seen."""
    last = 2**32 - 1
    period = last // layout.PERIOD
    (incoming,) = (i for i in wire_setup.VERIFY_TABLE.incoming if i.pair == 0)
    table = verify.VerifyTable(incoming=(replace_keys(incoming, period),))
    one = wire_setup.verifier(table=table)
    one.tick(last + 20.5)
    assert verdict(one.verify(at_epoch(last))) == layout.VERDICT_ACCEPTED


def replace_keys(incoming: Incoming, period: int) -> Incoming:
    made = wire_setup.keys_of("alice", "bob", period * layout.PERIOD)
    keys = [
        msgspec.structs.replace(k, tag_keys={period: made.tag}, glance_keys={period: made.glance})
        for k in incoming.keys
    ]
    return msgspec.structs.replace(incoming, keys=tuple(keys))


class Raced(list):
    """Another worker writes its epoch between our first look and our writing."""

    higher = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if index == 0 and self.higher:
            self[0], self.higher = self.higher, 0
        return found


def test_a_worker_does_not_lower_what_another_wrote_meanwhile():
    epochs = Raced([0] * 4 * EPOCH_ROW)
    one = wire_setup.verifier(epochs=epochs)
    epochs.higher = wire_setup.EPOCH + 5
    assert isinstance(one.verify(TCP4), bytes)
    assert epochs[:2] == [wire_setup.EPOCH + 5, 0]


@quick
@given(st.lists(st.tuples(st.integers(-70, 70), st.integers(-70, 70)), min_size=1, max_size=12))
def test_no_clock_and_no_order_of_epochs_accepts_what_is_out_of_time(steps):
    """A clock that jumps back and forth: what is accepted is within the window and never below the last two."""
    one = wire_setup.verifier()
    accepted = []
    for clock, epoch in steps:
        one.tick(wire_setup.EPOCH + clock)
        if isinstance(one.verify(at_epoch(wire_setup.EPOCH + epoch)), bytes):
            assert clock - 60 <= epoch <= clock + 10
            accepted.append(epoch)
            assert epoch >= sorted(set(accepted))[-2:][0]


def test_after_a_leap_epochs_of_that_stretch_may_not_be_ahead_again():
    """Both clocks were ahead once; what was recorded then counts for little when the clock gets there."""
    now = wire_setup.NOW
    highest = int(now) + 7
    one = wire_setup.verifier(epochs=[0] * 4 * EPOCH_ROW)
    one.configure(wire_setup.VERIFY_TABLE, [0, 0, 0, highest] * 4)
    for ahead in (3, 7):
        assert verdict(one.verify(at_epoch(int(now) + ahead))) == layout.VERDICT_FUTURE
    assert isinstance(one.verify(at_epoch(int(now) + 2)), bytes)
    assert isinstance(one.verify(at_epoch(highest + 1)), bytes), "beyond the stretch it is as always"


def test_a_highest_epoch_that_fell_back_lets_later_ones_count_in_full():
    epochs = [0] * 4 * EPOCH_ROW
    one = wire_setup.verifier(epochs=epochs)
    pair = wire_setup.VERIFY_TABLE.incoming[0].slot
    assert isinstance(one.verify(at_epoch(int(wire_setup.NOW) + 8)), bytes)
    assert verdict(one.verify(TCP4)) == layout.VERDICT_REPLAYED_EPOCH
    other = wire_setup.verifier(epochs=epochs)
    assert isinstance(other.verify(at_epoch(int(wire_setup.NOW) + 8)), bytes)
    epochs[EPOCH_ROW * pair : EPOCH_ROW * (pair + 1)] = wire_setup.EPOCH - 100, 0, 0, wire_setup.EPOCH + 8
    for worker in (one, other):  # only the first of them raises the highest itself
        worker.tick(wire_setup.NOW + 1)
        worker.events.clear()
        assert isinstance(worker.verify(TCP4), bytes)
        assert [event.epoch for event in worker.events] == [wire_setup.EPOCH]


def test_a_second_machine_with_the_same_key_is_noticed():
    """Another fragment of the same epoch and index; epochs that rise and are too old all the same."""
    one = wire_setup.verifier()
    other = wire_setup.stamper()
    other.update(wire_setup.outgoing(statement=replace(wire_setup.STATEMENT, overall=0.1)))
    assert isinstance(one.verify(TCP4), bytes)
    assert isinstance(one.verify(TCP6), bytes)
    assert one.drain_duplicates() == {}
    assert isinstance(one.verify(other.stamp(carriers.remove(TCP4, ip.parse(TCP4)))), bytes)
    assert one.drain_duplicates() == {0: 1}
    for behind, noticed in ((40, {}), (40, {}), (35, {0: 1}), (36, {}), (30, {0: 1})):
        assert verdict(one.verify(at_epoch(wire_setup.EPOCH - behind))) == layout.VERDICT_REPLAYED_EPOCH
        assert one.drain_duplicates() == noticed, behind
