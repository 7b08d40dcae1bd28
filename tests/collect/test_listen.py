"""Real unix sockets, other processes where another process matters."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scentd.collect import listen
from scentd.collect.eve import EveReader, EveSource
from scentd.collect.source import Setting
from scentd.errors import HostError

ALERT = json.dumps({"event_type": "alert", "dest_ip": "10.0.0.7", "alert": {"severity": 1}}).encode() + b"\n"
MILD = ALERT.replace(b'"severity": 1', b'"severity": 3')
OTHER_PROCESS = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="sc") as directory:  # not tmp_path: a socket's path is at most 107 bytes
        yield Path(directory, "eve.sock")


def listener(path, alarms=None):
    source = EveSource(socket=str(path))
    return EveReader(source, Setting((), (alarms if alarms is not None else []).append))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def running(made, use):
    """Run `use` while the listener is up."""

    async def main():
        await made.start()
        try:
            await use()
        finally:
            await made.close()

    asyncio.run(main())


def other_process(path):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_lines_become_events_and_severe_ones_an_alarm_on_the_loop_thread(path):
    alarms = []
    made = listener(path, alarms)

    async def use():
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(MILD + ALERT[:20])
        await until(lambda: made.log.counters["alerts"] == 1)
        assert alarms == []
        writer.write(ALERT[20:] + ALERT)
        await until(lambda: made.log.counters["alerts"] == 3)
        assert [(a.severity, a.node) for a in alarms] == [(1.0, "10.0.0.7")]  # told once, though it came twice
        writer.close()

    running(made, use)


def test_a_line_of_ten_megabytes_costs_itself_only(path):
    made = listener(path)

    async def use():
        _, writer = await asyncio.open_unix_connection(path)
        for _ in range(160):
            writer.write(b"x" * 65536)
            await writer.drain()
        writer.write(b"\n" + ALERT)
        await until(lambda: made.log.counters["alerts"] == 1)
        assert made.counts()["eve_too_long"] == 1
        writer.close()

    running(made, use)


def test_clients_are_bounded_and_room_comes_back(path):
    made = listener(path)

    async def use():
        writers = [(await asyncio.open_unix_connection(path))[1] for _ in range(listen.MAX_CLIENTS)]
        await until(lambda: made.counts()["eve_clients"] == listen.MAX_CLIENTS)
        reader, refused = await asyncio.open_unix_connection(path)
        assert await reader.read() == b""
        assert made.counts()["eve_refused"] == 1
        refused.close()
        writers[0].write(ALERT)
        await until(lambda: made.log.counters["alerts"] == 1)
        writers[0].close()
        await until(lambda: len(made.input._clients) < listen.MAX_CLIENTS)
        _, again = await asyncio.open_unix_connection(path)
        again.write(ALERT)
        await until(lambda: made.log.counters["alerts"] == 2)
        for writer in (*writers, again):
            writer.close()

    running(made, use)


def test_close_removes_the_file_and_may_be_called_twice(path):
    made = listener(path)

    async def use():
        assert stat.S_ISSOCK(path.stat().st_mode)
        await made.close()
        assert list(path.parent.iterdir()) == []

    running(made, use)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another group")
@pytest.mark.parametrize(("group", "mode"), [(0, 0o600), (65534, 0o660)])
def test_the_group_of_the_directory_may_connect(path, group, mode):
    os.chown(path.parent, -1, group)
    made = listener(path)

    async def use():
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid, found.st_uid) == (mode, group, os.geteuid())

    running(made, use)


def test_a_stale_socket_of_a_killed_process_is_taken_over(path):
    process = other_process(path)
    process.kill()
    process.communicate()
    assert path.exists()
    made = listener(path)

    async def use():
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(ALERT)
        await until(lambda: made.log.counters["alerts"] == 1)
        writer.close()

    running(made, use)


def test_a_socket_that_another_process_listens_on_is_left_alone(path):
    process = other_process(path)
    try:
        with pytest.raises(HostError, match=f"process {process.pid} listens there; stop it or choose another"):
            asyncio.run(listener(path).start())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        process.communicate(b"")


def test_a_file_that_is_not_a_socket_is_left_alone(path):
    path.write_text("mine")
    with pytest.raises(HostError, match="is not a socket; remove it or choose another"):
        asyncio.run(listener(path).start())
    assert path.read_text() == "mine"


def test_a_datagram_socket_in_use_is_left_alone(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        with pytest.raises(HostError, match="in use"):
            asyncio.run(listener(path).start())


@pytest.mark.parametrize("name", ["no-such/eve.sock", "x" * 200, "x" * 104])
def test_a_path_that_cannot_be_made(path, name):
    with pytest.raises(HostError, match="`socket` needs a short path in a directory that exists"):
        asyncio.run(listener(path.parent / name).start())
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("close_first", [True, False])
def test_a_reload_passes_the_path_on(path, close_first):
    old, new = listener(path), listener(path)

    async def use():
        if close_first:
            await old.close()
        await new.start()
        await old.close()
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(ALERT)
        await until(lambda: new.log.counters["alerts"] == 1)
        writer.close()
        await new.close()
        assert list(path.parent.iterdir()) == []

    running(old, use)


# --- lines
