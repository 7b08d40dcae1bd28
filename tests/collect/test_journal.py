"""The journal's entries through journalctl. Where no journald runs a program of the same name stands in for journalctl,
and says what that prints; with a real journald: tests/systemd/test_sources.py.
"""

import asyncio
import json
import os
import time

import pytest

from scentd.collect import journal
from scentd.collect.journal import Journal


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a journalctl of a shell script."""

    def make(script):
        path = tmp_path / "journalctl"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return path

    monkeypatch.setattr(journal, "RETRY", 0.1)
    (tmp_path / "machine-id").write_text("0123\n")
    monkeypatch.setattr(journal, "MACHINE", tmp_path / "machine-id")
    return make


def run(story):
    async def whole():
        taken = []
        made = Journal(("_UID=0", "_COMM=sshd"), taken.append)
        await made.start()
        try:
            async with asyncio.timeout(10):
                await story(made, taken)
        finally:
            await made.close()
            await made.close()

    asyncio.run(whole())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def entry(message):
    return json.dumps({"__CURSOR": "s=1", "MESSAGE": message})


def test_messages_come_as_they_were_written(program, tmp_path):
    entries = [entry("a"), entry([98, 255]), entry(None), "{}", "nonsense", entry([256]), entry(7), entry("é")]
    (tmp_path / "entries").write_text("\n".join(entries) + "\n")
    program(f'echo "$@" > {tmp_path}/argv; cat {tmp_path}/entries; exec sleep 600')

    async def story(made, taken):
        before = time.time()
        await until(lambda: len(taken) == 5)
        assert taken == [b"a", b"b\xff", b"", b"", "é".encode()]
        assert made.counters == {"too_long": 0, "bad_entry": 3, "restarts": 0}
        assert made.problem == ""
        argv = (tmp_path / "argv").read_text().split()
        assert argv[-3:] == ["_MACHINE_ID=0123", "_UID=0", "_COMM=sshd"]
        (since,) = [float(word.removeprefix("--since=@")) for word in argv if word.startswith("--since")]
        assert abs(since - before) < 10

    run(story)


def test_a_journalctl_that_ends_is_told_and_started_again(program, tmp_path):
    path = program("echo 'No journal: Permission denied' >&2; exit 1")

    async def story(made, taken):
        await until(lambda: made.problem)
        assert made.problem == "journalctl ended (1): 'No journal: Permission denied'; or set the source's file"
        await until(lambda: made.counters["restarts"] >= 2)
        program(f"echo '{entry('back')}'; exec sleep 600")
        await until(lambda: taken)
        assert (taken[0], made.problem) == (b"back", "")

    run(story)
    assert path.exists()


def test_without_journalctl(program, monkeypatch):
    program("exit 0")
    monkeypatch.setenv("PATH", "/nowhere")

    async def story(made, _):
        await until(lambda: made.problem)
        assert made.problem == "journalctl: No such file or directory; install systemd, or set the source's file"

    run(story)


def test_the_child_ends_with_its_reader(program, tmp_path):
    program(f"echo $$ > {tmp_path}/pid; exec sleep 600")

    async def story(made, _):
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))

    run(story)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
