"""How often something was put back, and from when on that is a fight."""

import logging

from scentd.datapath.host.restored import FIGHT, FIGHT_SECONDS, Restored


def test_each_is_told_until_it_is_a_fight(caplog):
    one = Restored()
    with caplog.at_level(logging.WARNING):
        for n in range(FIGHT + 5):
            assert one.is_fight(n) == (n >= FIGHT)
            one.note("iptables: somebody has changed rules of ours", float(n))
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING] * FIGHT + [logging.ERROR]
    assert "10 times in 60 s; put back every 10 s alone until this ends" in caplog.text
    assert one.count == FIGHT + 5


def test_a_fight_ends():
    one = Restored()
    for _ in range(FIGHT):
        one.note("something", 100.0)
    assert one.why_not(100.0 + FIGHT_SECONDS - 1).startswith("somebody removes what is ours again and again")
    assert one.why_not(100.0 + FIGHT_SECONDS) == ""


def test_slow_removals_are_no_fight():
    one = Restored()
    for n in range(3 * FIGHT):
        now = n * (FIGHT_SECONDS + 1) / (FIGHT - 1)
        one.note("something", now)
        assert not one.is_fight(now)
