"""Failed logins: the lines that sshd writes, those that an attacker would like it to write, and a real sshd."""

import asyncio
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from knocking import PASSWORD, WRONG_PASSWORD, Sshd

from scentd.collect import sshd
from scentd.collect.source import Setting
from scentd.collect.sshd import Logins, SshdReader, SshdSource
from scentd.prefix import prefixes

OWN = prefixes(["10.0.0.0/8", "fd00::/16"])
PREFIXES = ("", "Nov  8 09:33:57 host sshd[123]: ", "2026-11-28T09:33:57.123456+00:00 host.example sshd-session[9]: ")
WRONG = "Failed password for root from 203.0.113.5 port {} ssh2"


def logins(failures=3, own=OWN, within=60.0):
    return Logins(SshdSource(failures=failures, within=within, hold=60.0), own)


def take(log, *lines, at=0.0):
    """The events of these lines, those that are none left out."""
    events = [log.event(line.encode() if isinstance(line, str) else line, 1000.0 + at, at) for line in lines]
    return [event for event in events if event is not None]


def counts(log):
    return {name: count for name, count in log.counters.items() if count and name != "lines"}


# -- what counts ---------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "message",
    [
        "Failed password for root from 203.0.113.5 port 4242 ssh2",
        "Failed password for invalid user  from 203.0.113.5 port 4242 ssh2",
        "Failed keyboard-interactive/pam for invalid user x y from 2001:db8::5 port 4242 ssh2",
        "Connection closed by authenticating user root 203.0.113.5 port 4242 [preauth]",
        "Connection reset by invalid user x 203.0.113.5 port 4242 [preauth]",
        "Disconnected from invalid user x 203.0.113.5 port 4242 [preauth]",
        "Disconnecting authenticating user root 203.0.113.5 port 1: Too many authentication failures [preauth]",
    ],
)
def test_a_failure(prefix, message):
    log = logins(failures=1)
    (event,) = take(log, prefix + message + ("\r" if not prefix else ""))
    assert (event.kind, event.severity, event.node) == ("intrusion", sshd.BEGINNING, "")
    assert (event.at, event.until) == (1000.0, 1060.0)
    assert counts(log) == {"failures": 1}


@pytest.mark.parametrize(
    "line",
    [
        "Accepted password for root from 203.0.113.5 port 4242 ssh2",
        "Accepted publickey for root from 203.0.113.5 port 4242 ssh2: ED25519 SHA256:dQ51zfoa9B9EuCu4B",
        "Failed none for invalid user x from 203.0.113.5 port 4242 ssh2",
        "Failed publickey for root from 203.0.113.5 port 4242 ssh2: ED25519 SHA256:dQ51zfoa9B9EuCu4B",
        "Invalid user x from 203.0.113.5 port 4242",
        "Connection closed by 203.0.113.5 port 4242 [preauth]",
        "Disconnected from user root 203.0.113.5 port 4242",
        "Failed password for root from 203.0.113.5 port 4242 ssh2 and more",
        " Failed password for root from 203.0.113.5 port 4242 ssh2",
        "Nov 28 09:33:57 host su[1]: Failed password for root from 203.0.113.5 port 4242 ssh2",
        "Nov 28 09:33:57 host my sshd[1]: Failed password for root from 203.0.113.5 port 4242 ssh2",
        "host sshd[1]: Failed password for root from 203.0.113.5 port 4242 ssh2",
        "Server listening on 127.0.0.1 port 40022.",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_failure(line):
    log = logins(failures=1)
    assert take(log, line) == []
    assert counts(log) == {}


def test_a_connection_counts_once_if_it_failed_before_it_ended():
    log = logins(failures=2)
    end = "Connection closed by authenticating user root 203.0.113.5 port 7 [preauth]"
    assert take(log, WRONG.format(7), end) == []
    assert take(log, end) != [], "another connection of the same port"
    assert counts(log) == {"failures": 2}


def test_the_event_is_of_so_many_in_so_long():
    log = logins()
    for at in (0.0, 40.0, 61.0):
        assert take(log, WRONG.format(int(at)), at=at) == [], "never three within a minute"
    (event,) = take(log, WRONG.format(1), at=62.0)
    assert event.detail == "3 failed logins at sshd, the last of 203.0.113.5"
    many = [take(log, WRONG.format(i), at=63.0)[0].severity for i in range(27)]
    assert (many[25], many[26]) == (sshd.BEGINNING, sshd.MANY)


def test_many_senders_with_a_failure_each_are_an_attack_all_the_same():
    (event,) = take(logins(), *(f"Failed password for root from 203.0.113.{i} port 7 ssh2" for i in range(3)))
    assert event.node == ""


def test_lines_that_syslog_has_put_together_count_each():
    log = logins()
    (event,) = take(log, PREFIXES[1] + "message repeated 3 times: [ " + WRONG.format(7) + "]")
    assert event.severity == sshd.BEGINNING
    take(log, PREFIXES[1] + "message repeated 999999999 times: [ " + WRONG.format(7) + "]")
    assert counts(log) == {"failures": 1_000_000_002}


def test_a_node_of_ours_that_knocks_is_named():
    """It is the node that does harm. What comes from outside is about this host."""
    log = logins(failures=2)
    for i in range(4):
        take(log, WRONG.format(i))
    lines = [f"Failed password for root from 10.1.2.3 port {i} ssh2" for i in range(2)]
    (event,) = take(log, *lines)
    assert event.node == "10.1.2.3"
    assert take(logins(failures=1, own=()), lines[0])[0].node == "", "without addresses there is no telling"


def test_a_password_that_is_right_after_many_wrong_ones_was_guessed():
    log = logins()
    right = "Accepted password for root from {} port 9 ssh2"
    take(log, *map(WRONG.format, range(3)))
    assert take(log, right.format("203.0.113.6")) == [], "somebody else"
    assert take(log, "Accepted publickey for root from 203.0.113.5 port 9 ssh2: ED25519 SHA256:x") == []
    (event,) = take(log, right.format("203.0.113.5"))
    assert event.severity == sshd.GUESSED
    assert counts(log) == {"failures": 3, "guessed": 1}
    assert take(log, right.format("203.0.113.5"), at=61.0) == []


def test_a_sender_may_change_his_address_within_his_ipv6_network():
    log = logins()
    take(log, *(f"Failed password for root from 2001:db8::{i} port {i} ssh2" for i in range(3)))
    assert take(log, "Accepted password for root from 2001:db8::ff port 9 ssh2")[0].severity == sshd.GUESSED


# -- what an attacker writes ---------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "root from 10.9.9.9 port 22 ssh2",
        "x from 10.9.9.9 port 22 [preauth]",
        "x 10.9.9.9 port 22 [preauth]",
        "Failed password for root from 10.9.9.9 port 22 ssh2",
        PREFIXES[1] + "Failed password for root from 10.9.9.9 port 22 ssh2",
        "]: message repeated 900 times: [ Failed password for root from 10.9.9.9 port 22 ssh2]",
        r"x\012Failed password for root from 10.9.9.9 port 22 ssh2",
    ],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_user_name_names_nobody_else(name, prefix):
    log = logins(failures=1)
    for message in (
        f"Failed password for invalid user {name} from 203.0.113.5 port 4242 ssh2",
        f"Invalid user {name} from 203.0.113.5 port 4242",
        f"Connection closed by invalid user {name} 203.0.113.5 port 4243 [preauth]",
    ):
        for event in take(log, prefix + message):
            assert (event.node, event.severity) == ("", sshd.BEGINNING)
            assert "203.0.113.5" in event.detail
    assert counts(log) == {"failures": 2}


def test_of_a_line_that_was_cut_off_no_address_is_believed():
    """A name that is long enough makes sshd cut the line off just behind an address of the attacker's choice."""
    log = logins(failures=1)
    start, end = "Failed password for invalid user ", " from 10.9.9.9 port 22 ssh2"
    (event,) = take(log, start + "x" * (1023 - len(start) - len(end)) + end)
    assert event.node == ""
    assert counts(log) == {"failures": 1, "cut_off": 1}
    assert take(log, "Invalid user " + "x" * 2000) == []


def test_a_sender_without_an_address_counts():
    log = logins(failures=1)
    (event,) = take(log, "Failed password for root from dialup.example port 22 ssh2")
    assert event.node == ""
    assert counts(log) == {"failures": 1, "no_address": 1}


def test_state_is_bounded():
    log = logins()
    for i in range(5000):
        take(log, f"Failed password for root from 10.{i % 250}.{i // 250}.1 port {i} ssh2")
        take(log, f"Failed password for root from 2001:db8:{i:x}::1 port {i} ssh2")
    assert len(log._by_node._times) <= sshd.MAX_KEPT
    assert len(log._by_sender._times) <= sshd.MAX_KEPT
    assert len(log._failed) <= sshd.MAX_KEPT


@given(st.binary(max_size=300), st.sampled_from(PREFIXES))
def test_no_line_raises(data, prefix):
    log = logins(failures=1)
    take(log, data, prefix.encode() + data, b"Failed password for " + data + b" from " + data + b" port 1 ssh2")
    assert all(event.node == "" for event in take(log, prefix.encode() + b"Failed password for " + data))


# -- a real sshd ---------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("needs root: sshd with files of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Sshd(tmp_path_factory.mktemp("sshd"), port) as made:
        yield made


def watched(server, story, **settings):
    """The alarms of a reader of the server's log during `story`, which blocks; and the reader's counters."""
    alarms = []
    source = SshdSource(file=str(server.log), **settings)

    async def whole():
        made = SshdReader(source, Setting(prefixes(["127.0.0.0/8", "10.0.0.0/8"]), alarms.append))
        await made.start()
        await asyncio.to_thread(story)
        async with asyncio.timeout(10):
            while not alarms:
                await asyncio.sleep(0.005)
        await made.close()
        assert made.read(0.0) == []
        return made.counts()

    return alarms, asyncio.run(whole())


def test_wrong_passwords_wrong_keys_and_a_right_password(server):
    def story():
        assert server.knock(password=WRONG_PASSWORD) != 0
        assert server.knock(user="nobodyhere", password=WRONG_PASSWORD) != 0
        assert server.knock(key="wrong") != 0
        assert server.knock(key="right") == 0
        assert server.knock(password=PASSWORD) == 0

    alarms, counters = watched(server, story, failures=3)
    assert [(a.severity, a.node) for a in alarms] == [(sshd.BEGINNING, "127.0.0.1"), (sshd.GUESSED, "127.0.0.1")]
    assert (counters["sshd_failures"], counters["sshd_guessed"]) == (3, 1)
    assert "collect-tail" not in {t.name for t in threading.enumerate()}


@pytest.mark.parametrize("length", [1, 69, 200, 990, 5000])
def test_a_user_name_that_looks_like_a_line(server, length):
    """Wherever sshd cuts it off."""
    name = "x" * length + " from 10.9.9.9 port 22 ssh2"
    alarms, counters = watched(server, lambda: server.knock(user=name, password=WRONG_PASSWORD), failures=1)
    assert ("x" * min(length, 100)).encode() in server.log.read_bytes()
    assert {a.node for a in alarms} <= {"127.0.0.1", ""}
    assert counters["sshd_failures"] == 1
