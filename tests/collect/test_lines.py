"""Bytes to lines, however they are cut."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from scentd.collect import lines
from scentd.collect.lines import Lines


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" ")), max_size=20), st.integers(1, 50))
def test_lines_come_out_however_they_are_cut(lines, size):
    stream = b"".join(b + b"\n" for b in lines) + b"unfinished"
    splitter = Lines()
    found = [b for at in range(0, len(stream), size) for b in splitter.feed(stream[at : at + size])]
    assert found == [b for b in lines if b.strip()]


def test_a_line_of_just_the_limit_passes_and_one_more_byte_does_not():
    splitter = Lines()
    assert splitter.feed(b"a" * lines.MAX_LINE + b"\nb\n") == [b"a" * lines.MAX_LINE, b"b"]
    assert splitter.feed(b"a" * (lines.MAX_LINE + 1) + b"\nb\n") == [b"b"]
    assert splitter.too_long == 1


def test_a_line_of_ten_megabytes_is_skipped_without_being_held():
    splitter = Lines()
    chunk = b"x" * 65536
    tracemalloc.start()
    for _ in range(160):
        assert splitter.feed(chunk) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400_000
    assert splitter.feed(b"end\nnext\nsplit") == [b"next"]
    assert splitter.feed(b"ted\n") == [b"splitted"]
    assert splitter.too_long == 1
