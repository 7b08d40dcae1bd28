"""Against real sockets: servers that hang, send byte by byte, or send nonsense."""

import socket
import threading
import time
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import pytest

from scentd.act.resources.edge_http import answers, connect_seconds, fetch, is_local, warm
from scentd.act.resources.steer_table import End

LIMIT = 0.5


@contextmanager
def serving(talk):
    """A server that calls `talk` for each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones = []

    def work():
        with suppress(OSError):
            while True:
                end, _ = listener.accept()
                open_ones.append(end)
                threading.Thread(target=one, args=(end,), daemon=True).start()

    def one(end):
        with suppress(OSError):
            talk(end)

    thread = threading.Thread(target=work)
    thread.start()
    yield End(ip_address("127.0.0.1"), listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for end in open_ones:
        end.close()


def silent(end):
    end.recv(1000)
    end.recv(1000)


def dribbling(end):
    end.recv(1000)
    while True:
        end.sendall(b"H")
        time.sleep(0.05)


def dribbling_headers(end):
    end.recv(1000)
    end.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        end.sendall(b"a: b\r\n")
        time.sleep(0.1)


def dribbling_body(end):
    end.recv(1000)
    end.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        end.sendall(b"x")
        time.sleep(0.05)


def nonsense(end):
    end.recv(1000)
    end.sendall(b"\x00\xff" * 1000 + b"\r\n\r\n")
    end.close()


def endless(end):
    end.recv(1000)
    end.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        end.sendall(bytes(65536))


@pytest.mark.parametrize("talk", [silent, dribbling, dribbling_headers, dribbling_body, nonsense])
def test_a_server_that_does_not_come_to_an_end_is_left(talk):
    with serving(talk) as end:
        begun = time.monotonic()
        assert fetch(end, "site", "/", LIMIT, 10**6) is None
        assert warm(end, "site", ["/a", "/b"], 10**6, 2 * LIMIT, LIMIT, threading.Event()) == (0, 0)
        if talk is not dribbling_body:
            assert not answers(end, "site", "/", LIMIT)
        assert time.monotonic() - begun < 10 * LIMIT


def test_a_body_without_an_end_is_bounded():
    with serving(endless) as end:
        assert fetch(end, "site", "/", 5.0, 100_000)[:2] == (200, 100_000)
        assert warm(end, "site", ["/a", "/b", "/c"], 150_000, 5.0, 5.0, threading.Event()) == (1, 150_000)


def test_warming_ends_when_the_daemon_stops():
    stop = threading.Event()
    stop.set()
    with serving(endless) as end:
        assert warm(end, "site", ["/a"], 10, 5.0, 5.0, stop) == (0, 0)


def test_nobody_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        end = End(ip_address("127.0.0.1"), held.getsockname()[1])
        assert not answers(end, "site", "/", LIMIT)
        assert fetch(end, "site", "/", LIMIT, 10) is None
        assert connect_seconds(end, LIMIT) < LIMIT  # a refusal comes from there, too
        assert connect_seconds(end, LIMIT, ip_address("192.0.2.1")) is None


def test_addresses_of_this_host():
    assert is_local(ip_address("127.0.0.1"))
    assert is_local(ip_address("::1"))
    assert not is_local(ip_address("192.0.2.1"))
    assert not is_local(ip_address("2001:db8::1"))
