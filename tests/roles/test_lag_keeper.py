"""What a profile says of stampers that lag, in the epoch file. tests/netns/test_lag.py has the programs, too."""

from scentd.bus.local import LocalBus
from scentd.model import StatedLag
from scentd.roles.lag_keeper import LagKeeper
from scentd.state import epochs


def test_it_is_kept_with_the_highest_epoch_and_over_a_restart(tmp_path):
    bus, slot = LocalBus(), epochs.slot_id("seen", b"one")
    keeper = LagKeeper(bus, lambda: None)
    bus.publish(StatedLag(0, 20))  # before there are pairs
    keeper.epochs = epochs.prepare(tmp_path / "epochs", [slot])
    keeper.epochs.raise_row(0, 100, 101)
    for lag in (20, 5):
        bus.publish(StatedLag(0, lag))
        assert epochs.Epochs(tmp_path / "epochs").row(0) == (100, 101, 0, 0, lag)
    assert not bus.failures
