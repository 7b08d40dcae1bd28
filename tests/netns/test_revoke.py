"""A stolen key is useless at once, in both packet paths, over reloads and restarts, whatever the configuration says.

a ---- 10.1.0.0/24, fd00:1::/64 ---- b      each the other's strict peer
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from edges import in_place, reached, strict_ends
from hosts import Node, until

pytestmark = pytest.mark.netns


@pytest.fixture(params=["queue", "offload"])
def nodes(request, tmp_path) -> Iterator[tuple[Node, Node]]:
    with strict_ends("rv", tmp_path, request.param == "offload") as ends:
        yield ends


def test_a_revoked_key_is_refused_at_once_and_for_good(nodes):
    a, b = nodes
    key = str(a.identity.public)
    assert reached(a, b) == [True, True]
    done = b.cli("revoke", key)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"key {a.identity.public.key_id.hex()} of a is revoked, at once" in done.stdout
    assert reached(a, b) == [False, False]
    until(lambda: b.count("rejected", "unknown-key") > 0, "its packets are counted")
    assert "its key is revoked: nothing of it is accepted" in b.cli("status").stdout
    b.network["interval"] = "3s"
    b.reload()
    assert reached(a, b) == [False, False]
    b.restart()
    in_place(b)
    assert reached(a, b) == [False, False]
    assert b.profile(a) is None
    [told] = json.loads(b.cli("revoke", "--json").stdout)["revoked"]
    assert (told["key"], told["peers"]) == (key, ["a"])
    assert b.cli("revoke", "--undo", key).returncode == 0
    until(lambda: reached(a, b) == [True, True], "it is accepted again")
    assert b.cli("revoke").stdout == "no key is revoked here\n"


def test_nothing_is_sealed_for_a_thief(nodes):
    """What leaves for the peer whose key was stolen has no scent."""
    a, b = nodes
    b.cli("revoke", str(a.identity.public))
    before = a.count("absent")
    assert reached(b, a) == [False, False]
    until(lambda: a.count("absent") > before, "unscented packets are counted")


def test_without_a_daemon(nodes):
    """The file is written, and the next start obeys it; a file that is damaged is no reason to forget it."""
    a, b = nodes
    b.stop()
    done = b.cli("revoke", str(a.identity.public))
    assert "from the next start on" in done.stdout
    b.start()
    in_place(b)
    assert reached(a, b) == [False, False]
    a.stop()
    assert reached(a, b) == [False, False], "without a scent"
    b.stop()
    (b.directory / "revoked").write_text("nonsense!\n")
    done = b.cli("run")
    assert done.returncode != 0
    assert "revoked: line 1: not base64" in done.stderr


def test_what_is_no_key_is_refused(nodes):
    _, b = nodes
    done = b.cli("revoke", "a")
    assert (done.returncode, done.stdout) == (2, "")
    assert "take the output of `scentd pubkey`" in done.stderr
    assert not (b.directory / "revoked").exists()
    done = b.cli("revoke", "--undo")
    assert (done.returncode, done.stdout) == (2, "")
    assert "revoke --undo: name the PUBLIC_KEY" in done.stderr


def test_check_config_says_that_a_key_is_revoked(nodes):
    _, b = nodes
    assert "is revoked" not in b.cli("check-config").stdout
    b.cli("revoke", b.peers[0]["public_key"])
    assert "peer a: its public_key is revoked here: nothing is accepted by it" in b.cli("check-config").stdout
