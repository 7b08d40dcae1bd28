"""What a worker has learnt of paths counts for all, for ten minutes."""

from ipaddress import ip_address

from scentd.roles.learned_mtus import MAX_LEARNED, SECONDS, LearnedMtus

ONE, OTHER = (ip_address(text).packed for text in ("10.0.0.1", "fd00::1"))


def test_each_change_is_told_once():
    learned = LearnedMtus()
    assert not learned.has_changed(0.0)
    learned.take({ONE: 1300, OTHER: 1290}, 0.0)
    assert learned.has_changed(1.0)
    assert not learned.has_changed(1.0)
    assert learned.limits(1.0) == [("10.0.0.1", 1300), ("fd00::1", 1290)]
    learned.take({ONE: 1300}, 2.0)
    assert not learned.has_changed(2.0), "the same as before"
    learned.take({ONE: 1200}, 3.0)
    assert learned.has_changed(3.0)
    assert dict(learned.limits(3.0))["10.0.0.1"] == 1200


def test_it_ends_after_ten_minutes():
    learned = LearnedMtus()
    learned.take({ONE: 1300}, 0.0)
    assert learned.has_changed(0.0)
    assert not learned.has_changed(SECONDS - 1)
    assert learned.limits(SECONDS) == []
    assert learned.has_changed(SECONDS)
    assert not learned.has_changed(SECONDS)


def test_it_is_bounded():
    learned = LearnedMtus()
    learned.take({n.to_bytes(4, "big"): 1300 for n in range(MAX_LEARNED + 5)}, 0.0)
    limits = learned.limits(1.0)
    assert len(limits) == MAX_LEARNED
    assert limits[-1][0] == str(ip_address((MAX_LEARNED + 4).to_bytes(4, "big")))
