"""Reloads of what concerns the daemon itself; the control socket for those who may change something and for others."""

from __future__ import annotations

import grp
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from guarded import guarded
from hosts import Node, acquainted, pair, peer_of, start, until

from scentd.control import client
from scentd.control.server import CLIENTS_MAX
from scentd.datapath.host import selection
from scentd.errors import ScentdError

pytestmark = pytest.mark.netns

NOBODY = 65534


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[tuple[Node, Node]]:
    public = Path(tempfile.mkdtemp(prefix="scentd-control-"))  # pytest's own directories are for root alone
    public.chmod(0o755)
    with pair("rd", tmp_path_factory.mktemp("rd")) as (a, b):
        b.control = public / "control.sock"
        b.sections["policy"] = [
            {"name": "isolate", "when": "threat >= 0.5", "do": {"kind": "quarantine", "timeout": "1s"}}
        ]
        with guarded(b):
            start(a, b)
            acquainted(b, a)
            yield a, b
    shutil.rmtree(public)


@pytest.fixture
def b(nodes) -> Iterator[Node]:
    """The node that is reloaded, and put back."""
    node = nodes[1]
    saved = dict(node.sections), dict(node.network), node.peers
    yield node
    node.sections, node.network, node.peers = saved
    node.write()
    assert json.loads(node.cli("reload", "--json").stdout)["applied"]


def settings(node: Node, **daemon: str) -> None:
    node.sections = {**node.sections, "daemon": daemon}
    node.write()


def test_the_log_level(b):
    for level, says in (("error", False), ("info", True), ("warning", False)):
        settings(b, log_level=level)
        size = b.log.stat().st_size
        assert b.cli("reload").returncode == 0
        assert ("configuration reloaded" in b.log.read_text()[size:]) == says


def test_the_history(nodes, b):
    a, _ = nodes
    other = b.directory / "elsewhere.db"
    b.sections["allocator"] = {"history": str(other)}
    b.write()
    assert b.cli("reload").returncode == 0
    a.alarm(a.host.ipv4)
    until(lambda: b.resources("quarantine"), "it is quarantined")
    until(other.exists, "decisions go to the new file")
    assert "quarantine" in b.cli("explain", "a").stdout
    until(lambda: not b.resources("quarantine"), "it is over")


def test_what_a_policy_does(nodes, b):
    a, _ = nodes
    for name in ("first", "second"):
        file = b.directory / name
        do = {"kind": "command", "argv": ["/bin/sh", "-c", f"cat > {file}"], "user": "root"}
        b.sections = {**b.sections, "policy": [{"name": "tell", "when": "threat >= 0.5", "do": do}]}
        b.write()
        assert b.cli("reload").returncode == 0
        until(lambda: b.profile(a)["levels"]["threat"] < 0.5, "the alarm before is over")
        a.alarm(a.host.ipv4)
        until(lambda file=file: file.exists() and '"tell"' in file.read_text(), f"{name} has run")


def owner(node: Node) -> tuple[int, int]:
    status = os.stat(node.control)
    return status.st_gid, stat.S_IMODE(status.st_mode)


def test_the_control_group(b):
    closed = owner(b)
    assert closed[1] == 0o600
    group = grp.getgrgid(NOBODY)
    settings(b, control_group=group.gr_name)
    assert b.cli("reload").returncode == 0
    assert owner(b) == (group.gr_gid, 0o660)
    settings(b, control_group="no-such-group", log_level="error")
    done = b.cli("reload")
    assert done.returncode == 1
    assert "daemon.control_group: no group 'no-such-group'; make it with groupadd" in done.stderr
    assert owner(b) == (group.gr_gid, 0o660)
    settings(b)
    assert b.cli("reload").returncode == 0
    assert owner(b) == closed


def test_a_source_that_cannot_be_opened_is_told(b):
    """All else is applied; that network's old sources stay."""
    (b.directory / "file").touch()
    good = b.network["source"]
    b.network = {**b.network, "source": [*good, {"kind": "eve", "socket": str(b.directory / "file" / "eve.sock")}]}
    b.write()
    done = b.cli("reload")
    assert done.returncode == 1
    assert "applied but for: network b: " in done.stderr
    assert "its old sources stay" in done.stderr
    issued = b.status()["networks"][0]["issued"]
    until(lambda: b.status()["networks"][0]["issued"] > issued, "it issues")


def test_rules_that_cannot_be_written_are_told_and_written_later(nodes, b):
    """And the guard closes then, what the new configuration closes."""
    a, _ = nodes
    b.peers = [peer_of(a, absent="drop")]
    b.sections = {**b.sections, "verify": {"absent": "drop"}}
    b.write()
    with broken(b):
        assert not b.status()["guard"]["closed"]
        done = b.cli("reload")
        assert done.returncode == 1
        assert "applied but for: " in done.stderr
        assert "tried again every 10 s" in done.stderr
    until(lambda: b.cli("rules", "show").stdout.count("as wanted") == 3, "they are written", 20)
    until(lambda: b.status()["guard"]["closed"], "the guard is told")
    assert b.log.read_text().count("the host is not as the configuration wants it") <= 1
    assert "Traceback" not in b.log.read_text()


@contextmanager
def broken(node: Node) -> Iterator[None]:
    """A chain under the name of one that the new configuration needs, at another hook: the kernel refuses ours."""
    chain = ("chain", "inet", selection.NAME, "judged")
    node.host.run("nft", "add", *chain, "{ type filter hook input priority 0; }")
    try:
        yield
    finally:
        node.host.run("nft", "delete", *chain)


@contextmanager
def clients(node: Node, number: int) -> Iterator[list[socket.socket]]:
    """Connections of nobody, each of which waits for events."""
    made = []
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        for _ in range(number):
            end = socket.socket(socket.AF_UNIX)
            end.connect(str(node.control))
            made.append(end)
    finally:
        os.seteuid(0)
        os.setegid(0)
    try:
        for end in made:
            with suppress(BrokenPipeError):
                end.sendall(b'{"command": "monitor"}\n')
        yield made
    finally:
        for end in made:
            end.close()


def test_others_cannot_change_anything_or_keep_root_out(b):
    settings(b, control_group=grp.getgrgid(NOBODY).gr_name)
    assert b.cli("reload", "--confirm", "60s").returncode == 0
    with clients(b, CLIENTS_MAX + 3) as ends:
        refused = 0
        for end in ends[CLIENTS_MAX:]:
            end.settimeout(5)
            refused += b"clients ask already" in end.recv(1000)
        assert refused == 3
        assert b.cli("confirm").returncode == 0
        assert b.cli("status").returncode == 0
    for command in ("reload", "confirm", "restore"):
        with clients(b, 0), pytest.raises(ScentdError, match="only root may do this"):
            as_nobody(b, command)


def as_nobody(node: Node, command: str) -> dict:
    """As soon as there is room again."""
    end = time.monotonic() + 10
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        while True:
            try:
                return client.change(str(node.control), {"command": command})
            except ScentdError as error:
                if "clients ask already" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.1)
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize(("time_", "why"), [("60", "unit"), ("0s", "write 1s to 24h"), ("2d", "write"), ("25h", "24h")])
def test_a_wrong_time(b, time_, why):
    done = b.cli("reload", "--confirm", time_)
    assert done.returncode == 2
    assert why in done.stderr


def test_no_daemon(nodes, tmp_path):
    _, b = nodes
    for command in ("reload", "confirm"):
        done = b.cli(command, "--socket", str(tmp_path / "none"))
        assert done.returncode == 1
        assert "is scentd running?" in done.stderr


def test_a_stop_on_trial_says_what_comes_next_and_what_went_back_is_shown(b):
    b.sections = {**b.sections, "verify": {"absent": "drop"}}
    b.write()
    assert b.cli("reload", "--confirm", "1s").returncode == 0
    until(lambda: b.status()["reverted_at"], "it goes back")
    assert f"nobody confirmed {b.config}" in b.cli("status").stdout
    assert b.cli("reload", "--confirm", "60s").returncode == 0
    assert b.status()["reverted_at"] is None
    b.stop()
    assert "was not confirmed; the next daemon takes" in b.log.read_text()
    b.start()
    assert b.status()["trial_until"] is None
