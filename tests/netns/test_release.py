"""`scentd release`: an operator ends a quarantine; the policy, which still holds, does not renew it.

a ---- b      a is attacked all the while; b quarantines it
"""

from __future__ import annotations

import json

import pytest
from hosts import answered, pair, start, until

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("rl", tmp_path_factory.mktemp("rl")) as (a, b):
        a.network["source"][1]["hold"] = "120s"
        do = {"kind": "quarantine", "timeout": "60s"}
        b.sections["policy"] = [{"name": "isolate", "when": "threat >= 0.5", "do": do}]
        start(a, b)
        until(lambda: b.profile(a), "a profile")
        yield a, b


def test_a_release_by_hand(nodes):
    a, b = nodes
    nothing = b.cli("release", a.host.ipv4)
    assert (nothing.returncode, "no quarantine of it" in nothing.stderr) == (1, True)
    with a.socket(4) as sender, b.socket(4) as receiver:
        assert answered(sender, receiver)
        a.alarm(a.host.ipv4)
        until(lambda: b.resources("quarantine"), "b quarantines", 10)
        until(lambda: not answered(sender, receiver, seconds=0.1), "the node is cut off", 5)
        said = b.cli("release", a.host.ipv4, "--for", "20s", "--json")
        assert json.loads(said.stdout)["released"] == [a.host.ipv4]
        until(lambda: answered(sender, receiver, seconds=0.1), "the node is released", 5)
        epoch = b.profile(a)["epoch"]
        (release,) = b.status()["allocation"]["releases"]
        assert (release["policy"], release["peer"], release["senders"]) == ("isolate", a.name, f"{a.host.ipv4}/32")
        assert "released by hand" in b.cli("status").stdout
        b.reload()
        until(lambda: b.profile(a)["epoch"] > epoch, "another profile", 12)
        assert not b.resources("quarantine")
        assert answered(sender, receiver)
        decisions = b.cli("explain", a.name, "--json").stdout
        assert "refused: released by hand until" in decisions
        assert "by hand; the policy does not renew it for 20 s" in decisions
        until(lambda: b.resources("quarantine"), "its time is over, and the policy still holds", 30)
    assert not b.status()["allocation"]["releases"]


@pytest.mark.parametrize(
    "wrong", [["nobody"], ["10.1.0.1/24"], ["10.1.0.1", "--for", "soon"], ["10.1.0.1", "--for", "31d"]]
)
def test_mistakes_have_a_way_out(nodes, wrong):
    said = nodes[1].cli("release", *wrong)
    assert said.returncode in (1, 2)
    assert "write" in said.stderr
    assert "Traceback" not in said.stderr
