"""What the daemon writes of a pair into the map that the verifying program has."""

from scentd.core.offload.decode import parse_receiving
from scentd.core.offload.receiving import receiving_entry, with_lag


def test_a_pair_without_fragments():
    state = parse_receiving(receiving_entry(7, 5, 6, 4, 3, 2))
    assert (state.highest, state.before, state.since, state.accepted, state.leapt, state.lag) == (7, 5, 6, 4, 3, 2)
    assert (state.seen, state.source, set(state.sealed)) == (0, b"", {0})


def test_a_new_lag_changes_nothing_else_of_a_pair():
    assert with_lag(receiving_entry(7, 5, 6, 4, 3, 2), 9) == receiving_entry(7, 5, 6, 4, 3, 9)
