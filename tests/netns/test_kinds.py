"""Kinds that only their tables know, in running daemons: a kind is one file and one line (toys.py)."""

from __future__ import annotations

import json

import pytest
import toys
from hosts import acquainted, pair, start, until

pytestmark = pytest.mark.netns


def test_a_source_an_action_and_a_view_of_the_tables_alone_run_in_a_daemon(tmp_path):
    load, flag = tmp_path / "load", tmp_path / "flag"
    load.write_text("0.9")
    with pair("kinds", tmp_path) as (a, b):
        for node in (a, b):
            node.program = (toys.__file__,)
        a.network["source"] = [{"kind": "line", "path": str(load)}]
        b.sections["policy"] = [{"name": "busy", "when": "cpu > 0.8", "do": {"kind": "flag", "path": str(flag)}}]
        start(a, b)

        assert acquainted(b, a)["levels"]["cpu"] == pytest.approx(0.9, abs=0.01)
        until(lambda: flag.exists() and flag.read_text() == "a", "the actuator has written what was decided")
        assert b.resources("flag") == [
            {"kind": "flag", "resource": str(flag), "peer": "a", "text": "flagged", "amount": None, "unit": ""}
            | {"observed": None, "until": None, "why_not": ""}
        ]
        status = b.status()
        assert status["actuators"]["flag_files"] == 1
        assert status["allocation"]["decisions"]["flag"] == 1
        assert b.cli("status", "--view", "roll-call").stdout == "a: here\n"
        (decision,) = json.loads(b.cli("explain", "a", "--json").stdout)["decisions"]
        assert (decision["action"], decision["target"], decision["after"]) == ("flag", str(flag), "a")

        load.unlink()  # a source that fails is counted under its reader's name, as any is
        until(lambda: a.status()["networks"][0]["collectors"]["failures_line"], "the failing source is counted")
        b.stop()
        assert not flag.exists()


def test_without_their_line_in_a_table_they_do_not_exist(tmp_path):
    with pair("kinds", tmp_path) as (_, b):
        b.sections["policy"] = [{"name": "busy", "when": "cpu > 0.8", "do": {"kind": "flag", "path": "f"}}]
        b.network["source"] = [{"kind": "line", "path": "l"}]
        b.write()
        refused = b.cli("check-config")
        assert refused.returncode != 0
        assert "policy[0].do.kind: unknown: 'flag'" in refused.stderr
        assert "network[0].source[0].kind: unknown: 'line'" in refused.stderr
        assert "no such view; known: text, prometheus" in b.cli("status", "--view", "roll-call").stderr
