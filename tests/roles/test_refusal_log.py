from collections import Counter

from scentd.roles import refusal_log
from scentd.roles.refusal_log import LINES, PAUSE, RefusalLog, words
from scentd.wire import layout


def test_every_outcome_that_harms_has_words():
    for reason in packets_reasons():
        for treatment in layout.TREATMENTS.values():
            assert reason in words(f"{reason}:{treatment}")
    for reason in set(layout.UNSTAMPED.values()) - {"already"}:
        assert reason in words(f"unstamped:{reason}")
    assert [words(quiet) for quiet in ("accepted", "accepted:drop", "absent:pass", "unstamped:already")] == [""] * 4


def packets_reasons():
    return set(layout.VERDICTS.values()) - {"accepted", "absent"}


def test_the_first_at_once_and_more_of_it_rarely(caplog):
    made = RefusalLog()
    counts = Counter({"bad-tag:drop": 3})
    made.look({"acme": counts}, 100.0)
    counts["bad-tag:drop"] = 50
    made.look({"acme": counts}, 100.0 + PAUSE - 1)
    counts["absent:reject"] = 1
    made.look({"acme": counts}, 100.0 + PAUSE - 1)
    made.look({"acme": counts}, 100.0 + PAUSE)
    made.look({"acme": counts}, 100.0 + 9 * PAUSE)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[:3] for line in said] == [
        ["peer", "acme:", "3"],
        ["peer", "acme:", "1"],
        ["peer", "acme:", "47"],
    ]


def test_a_thousand_peers_fill_no_log(caplog):
    """A look says only so much; the others follow, and nothing is left out for good."""
    made = RefusalLog()
    outcomes = {f"peer{n}": Counter({"stale:drop": 1}) for n in range(3 * LINES)}
    for look in range(5):
        made.look(outcomes, 100.0 + look)
        assert len(caplog.records) == min(3, look + 1) * LINES
    assert refusal_log.PAUSE > 60
