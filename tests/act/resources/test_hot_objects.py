import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.act.resources.hot_objects import hottest, last_lines
from scentd.prefix import PrefixMap

CLIENTS = PrefixMap([("10.1.0.0/24", True), ("fd01::/64", True)])
SITE = "www.example.org"


def line(target="/a", client="10.1.0.7", user="-", verb="GET", status=200, version="HTTP/1.1"):
    return (
        f'{client} - {user} [28/Nov/2026:10:00:00 +0000] "{verb} {target} {version}" {status} 12 "-" "curl/7.88"'
    ).encode()


def paths(*lines, most=10):
    return hottest(lines, CLIENTS, SITE, most)


def test_what_is_asked_for_most_comes_first():
    lines = [line("/b")] * 3 + [line("/a?v=1")] * 5 + [line("/d"), line("/c")]
    assert paths(*lines) == ["/a?v=1", "/b", "/c", "/d"]
    assert paths(*lines, most=2) == ["/a?v=1", "/b"]


def test_both_families_count_and_other_networks_do_not():
    assert paths(line(client="fd01::5")) == ["/a"]
    assert paths(line(client="::ffff:10.1.0.9")) == ["/a"]
    for client in ("10.1.1.7", "fd02::5", "999.1.0.7", "::::", "10.1.0.7.example"):
        assert paths(line(client=client)) == []


def test_what_a_cache_does_not_keep_is_left_out():
    assert paths(line(status=304)) == ["/a"]
    others = [
        line(status=404),
        line(status=206),
        line(status=500),
        line(verb="POST"),
        line(verb="HEAD"),
        line(user="jo"),
    ]
    assert paths(*others) == []


def test_whole_urls_count_for_the_site_alone():
    assert paths(line("http://www.example.org/x")) == ["/x"]
    assert paths(line("http://evil.example/x"), line("http://www.example.org.evil/x"), line("http:/x")) == []


@pytest.mark.parametrize(
    "target",
    [
        "/../etc/passwd",
        "/a/..",
        "/%2e%2E/x",
        "/a%2f..%2fb",
        "/a\\..\\b",
        "/a%5c..%5cb",
        "//evil.example/x",
        "evil.example:443",
        "*",
        "/a\x00b",
        "/a\rHost:evil",
        "/a%0d%0aHost:evil",
        "/a%00",
        "/\x1b[31m",
        "/ä",
        '/a"b',
        "/a#b",
        "/<script>",
        "/" + "x" * 3000,
        "/" + "x" * 100_000,
    ],
)
def test_hostile_targets_are_skipped(target):
    assert paths(line(target), line("/good")) == ["/good"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 300,
        b"10.1.0.7",
        b'10.1.0.7 - - [x] "GET /a"',
        b'10.1.0.7 - - [x] "GET /a HTTP/1.1"',
        b'10.1.0.7 - - [x] "GET  /a HTTP/1.1" 200 1',
        b'10.1.0.7 - - [x] "\\x16\\x03\\x01" 400 1',
        b'10.1.0.7 - - [x] "GET /a HTTP/1.1" 2000 1',
        b'x 10.1.0.7 - - [x] "GET /a HTTP/1.1" 200 1',
        b"(" * 4000,
    ],
)
def test_lines_that_are_none_are_skipped(raw):
    assert paths(raw) == []


@given(st.lists(st.one_of(st.binary(max_size=200), st.text(max_size=50).map(line))))
def test_any_line_gives_a_plain_path_or_none(lines):
    for path in paths(*lines):
        assert path.startswith("/")
        assert path.isascii()
        assert path.isprintable()
        assert " " not in path


def test_the_end_of_the_log_counts(tmp_path):
    log = tmp_path / "access.log"
    log.write_bytes(b"\n".join([line("/old")] * 1000 + [line("/new")] * 10) + b"\n")
    assert paths(*last_lines(log, 500)) == ["/new"]


def test_what_a_short_log_lacks_is_in_its_predecessor(tmp_path):
    log = tmp_path / "access.log"
    log.write_bytes(line("/new") + b"\n")
    (tmp_path / "access.log.1").write_bytes(b"\n".join([line("/old")] * 50) + b"\n")
    assert paths(*last_lines(log, 100_000)) == ["/old", "/new"]
    size = log.stat().st_size
    assert paths(*last_lines(log, size + 10)) == paths(*last_lines(log, size)) == ["/new"]


def test_what_is_no_file_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        list(last_lines(tmp_path / "pipe", 1000))
    with pytest.raises(OSError, match="nothere"):
        list(last_lines(tmp_path / "nothere", 1000))
