from scentd.collect.rate import MIN_ELAPSED, Rates


def test_increase_per_second_since_the_reading_before():
    rates = Rates()
    assert rates.update({"a": 100, "b": 5}, 10.0) == {}
    assert rates.update({"a": 160, "b": 5}, 12.0) == {"a": 30.0, "b": 0.0}


def test_a_counter_that_restarts_begins_again_at_zero():
    rates = Rates(restarts=True)
    rates.update({"a": 1000}, 10.0)
    assert rates.update({"a": 10}, 12.0) == {"a": 5.0}
    assert rates.update({"a": 12}, 13.0) == {"a": 2.0}


def test_a_fall_is_a_gap():
    """Whether a counter began again, or was corrected by a little: 1e12 bytes in two seconds would be neither."""
    for before, after in ((1000, 10), (1e12, 1e12 - 5)):
        rates = Rates()
        rates.update({"a": before, "b": 0}, 10.0)
        assert rates.update({"a": after, "b": 8}, 12.0) == {"b": 4.0}
        assert rates.update({"a": after + 2, "b": 9}, 13.0) == {"a": 2.0, "b": 1.0}


def test_new_and_vanished_counters():
    rates = Rates()
    rates.update({"a": 1}, 1.0)
    assert rates.update({"b": 7}, 2.0) == {}
    assert rates.update({"a": 9, "b": 8}, 3.0) == {"b": 1.0}


def test_no_time_and_a_clock_that_goes_back():
    rates = Rates()
    rates.update({"a": 0}, 10.0)
    assert rates.update({"a": 5}, 10.0) == {}
    assert rates.update({"a": 6}, 10.0 + MIN_ELAPSED / 2) == {}
    assert rates.update({"a": 20}, 12.0) == {"a": 10.0}  # still from the first reading
    assert rates.update({"a": 30}, 5.0) == {}
    assert rates.update({"a": 40}, 6.0) == {"a": 10.0}
