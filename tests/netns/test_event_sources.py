"""Security events of real sensors at one end, and what the other end gets of them.

a, with an sshd and sensors that write logs ---- b, who knocks
"""

from __future__ import annotations

import json
import subprocess

import pytest
from hosts import acquainted, answered, pair, start, until
from knocking import WRONG_PASSWORD, Sshd

pytestmark = pytest.mark.netns

ALERT = {"event_type": "alert", "src_ip": "192.0.2.66", "alert": {"severity": 1, "category": "Web Application Attack"}}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with pair("es", tmp_path_factory.mktemp("es")) as (a, b):
        a.network["interval"] = "10s"
        a.network["source"] = [
            {"kind": "eve", "file": str(a.directory / "eve.json"), "hold": "4s"},
            {"kind": "sshd", "file": str(a.directory / "sshd" / "auth.log"), "failures": 3, "hold": "4s"},
            {"kind": "clamav", "file": str(a.directory / "clamav.log"), "hold": "4s"},
        ]
        start(a, b)
        acquainted(b, a)
        yield a, b


def counters(node) -> dict[str, int]:
    return node.status()["networks"][0]["collectors"]


def seen_at(b, a, threat: float, seconds: float) -> None:
    """Wait until b has a's profile with at least this threat; traffic carries it."""
    with a.socket(4) as sender, b.socket(4) as receiver:
        came = lambda: answered(sender, receiver) and b.profile(a)["levels"]["threat"] >= threat  # noqa: E731
        until(came, f"b has a profile with a threat of {threat}", seconds)


def test_logs_that_are_not_there_yet_are_told_and_stop_nothing(nodes):
    a, b = nodes
    for kind in ("eve", "sshd", "clamav"):
        until(lambda kind=kind: counters(a)[f"failures_{kind}"], f"{kind} fails", 30)
        assert counters(a)[f"{kind}_unreadable"] == 1
    assert "source eve: " in a.log.read_text()
    assert "no file has this name" in a.log.read_text()
    assert b.profile(a)["levels"]["threat"] == 0.0


def test_an_alert_in_a_file_is_on_the_wire_before_the_interval_is_over(nodes):
    a, b = nodes
    log = a.directory / "eve.json"
    issued = a.status()["networks"][0]["issued"]
    until(lambda: a.status()["networks"][0]["issued"] > issued, "the beginning of an interval")
    log.write_text(json.dumps(ALERT | {"dest_ip": a.host.ipv4}) + "\n")
    seen_at(b, a, 1.0, 5)
    assert b.profile(a)["affected"] == [a.host.ipv4]
    log.rename(f"{log}.1")
    log.write_text('{"event_type":"stats"}\nnonsense\n')
    until(lambda: counters(a)["eve_rotated"] == 1 and counters(a)["eve_bad_json"] == 1, "the next file is read")
    until(lambda: b.profile(a)["levels"]["threat"] == 0.0, "the event has ended", 30)


def test_somebody_who_guesses_passwords_at_sshd_is_seen_at_the_other_end(nodes):
    a, b = nodes
    with Sshd(a.directory / "sshd", 22, a.host.ipv4, run=lambda argv: a.host.start(*argv)) as sshd:
        for user in ("root", "root", "admin", "oracle"):
            inside = ("ip", "netns", "exec", b.host.namespace)
            assert sshd.knock(user=user, password=WRONG_PASSWORD, prefix=inside) != 0
        seen_at(b, a, 0.5, 15)
        assert counters(a)["sshd_failures"] >= 4
        assert "event=intrusion" in a.status()["networks"][0]["items"]
        assert b.profile(a)["affected"] == [], "whom an outsider attacks is not told by sshd"
    until(lambda: b.profile(a)["levels"]["threat"] == 0.0, "the event has ended", 30)


def test_a_finding_of_clamav_is_seen_at_the_other_end(nodes):
    a, b = nodes
    signature = a.directory / "one.ndb"
    signature.write_text(f"Sample:0:0:{b'bad in this test'.hex()}\n")
    (a.directory / "sample").write_text("bad in this test")
    argv = ["clamscan", f"--database={signature}", f"--log={a.directory / 'clamav.log'}", str(a.directory / "sample")]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 1
    seen_at(b, a, 0.8, 15)
    assert "event=malware" in a.status()["networks"][0]["items"]


def test_a_reload_keeps_the_place_in_a_file(nodes):
    a, _ = nodes
    log = a.directory / "eve.json"
    with open(log, "a") as file:
        file.write('{"event_type":')
    taken = counters(a)["eve_lines"]
    a.network["high"] = 0.9
    a.reload()
    with open(log, "a") as file:
        file.write('"stats"}\n')
    until(lambda: counters(a)["eve_lines"] == 1, f"the line that was half there (before: {taken})")
    assert counters(a)["eve_bad_json"] == 0


def test_a_reload_may_name_another_file(nodes):
    a, _ = nodes
    other = a.directory / "other.json"
    a.network["source"][0]["file"] = str(other)
    a.reload()
    other.write_text(json.dumps(ALERT | {"dest_ip": a.host.ipv4}) + "\n")
    until(lambda: counters(a)["eve_alerts"] == 1, "the other file is read")
