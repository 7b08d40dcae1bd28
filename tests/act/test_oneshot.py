"""Commands as real processes, webhooks to a real HTTP server."""

import http.server
import json
import logging
import os
import pwd
import threading
import time

import msgspec
import pytest

from scentd.act import command, oneshot, webhook
from scentd.act.oneshot import Errands, Tally
from scentd.core.allocate.plan import Post, Run
from scentd.errors import HostError
from scentd.model import Decision

pytestmark = pytest.mark.netns

DECISION = Decision(1.0, "a", "p", 100, "command", "a", "", "/bin/x", "cpu > 0.8 [cpu=0.9]")
ME = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")


def shell(script):
    return ["/bin/sh", "-c", script]


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid):
    """Ended; a zombie without a parent that cares is ended, too."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] == "Z"
    except FileNotFoundError:
        return True


# --- commands


def test_the_payload_comes_in_and_the_status_goes_out(tmp_path):
    argv = shell(f"cat > {tmp_path}/in; exit 7")
    assert command.run(argv, b"x" * 300_000, 5.0, ME) == 7
    assert (tmp_path / "in").read_bytes() == b"x" * 300_000


def test_a_program_that_does_not_read_is_no_trouble():
    assert command.run(["/bin/true"], b"x" * 300_000, 5.0, ME) == 0


def test_no_shell_comes_between(tmp_path):
    assert command.run(["/usr/bin/touch", f"{tmp_path}/a b; $(reboot)"], b"", 5.0, ME) == 0
    assert os.listdir(tmp_path) == ["a b; $(reboot)"]


def test_the_environment_is_minimal(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    command.run(
        shell(f"/usr/bin/env > {tmp_path}/env; ls /proc/self/fd > {tmp_path}/fd; pwd > {tmp_path}/cwd"), b"", 5.0, ME
    )
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}
    assert len((tmp_path / "fd").read_text().split()) == 4  # 0, 1, 2 and that of ls
    assert (tmp_path / "cwd").read_text() == "/\n"


@as_root
def test_it_runs_as_the_user_without_groups(tmp_path):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):  # noqa: S108 - pytest's own directories
            parent.chmod(parent.stat().st_mode | 0o011)
    assert command.run(shell(f"id -un > {tmp_path}/u; id -G > {tmp_path}/g"), b"", 5.0, "nobody") == 0
    assert (tmp_path / "u").read_text() == "nobody\n"
    assert (tmp_path / "g").read_text().split() == [str(pwd.getpwnam("nobody").pw_gid)]


def test_late_means_the_whole_group_is_killed(tmp_path):
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait"
    start = time.monotonic()
    with pytest.raises(HostError, match=r"killed after 0.3 s; give the policy a longer do.timeout"):
        command.run(shell(script), b"", 0.3, ME)
    assert time.monotonic() - start < 2
    for name in ("self", "child"):
        pid = (tmp_path / name).read_text().strip()
        wait_for(lambda pid=pid: gone(pid))


def test_a_child_in_the_background_does_not_hold_it_up(tmp_path):
    start = time.monotonic()
    assert command.run(shell(f"sleep 5 & echo $! > {tmp_path}/child"), b"", 4.0, ME) == 0
    assert time.monotonic() - start < 2
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_output_is_bounded_and_logged_at_debug(caplog):
    with caplog.at_level(logging.DEBUG):
        assert (
            command.run(shell("echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2"), b"", 10.0, ME) == 0
        )
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "begin" in record.getMessage()
    assert len(record.getMessage()) < command.OUTPUT_MAX + 200


@pytest.mark.parametrize(
    ("argv", "user", "message"),
    [
        (["/nowhere/x"], ME, "command /nowhere/x: No such file or directory"),
        (["/etc/passwd"], ME, "command /etc/passwd: Permission denied"),
        (["/bin/true"], "no-such-user", "there is no user 'no-such-user'"),
    ],
)
def test_what_cannot_be_started_is_a_host_error(argv, user, message):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=message):
        command.run(argv, b"", 1.0, user)
    assert len(os.listdir("/proc/self/fd")) == before


# --- webhooks


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Content-Type"], body))
        status = self.server.answers.pop(0) if self.server.answers else 200
        if status == "hang":
            self.server.hang.wait(5)
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.location)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.seen, made.answers, made.location, made.hang = [], [], "", threading.Event()
    made.url = f"http://127.0.0.1:{made.server_port}/secret"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.hang.set()
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_decision_is_posted_as_json(server):
    assert webhook.post(server.url, msgspec.json.encode(DECISION), 2.0) == 200
    ((path, kind, body),) = server.seen
    assert (path, kind) == ("/secret", "application/json")
    assert json.loads(body)["reason"] == DECISION.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/elsewhere"])
def test_redirects_are_not_followed(server, status, location):
    server.answers, server.location = [status], location
    with pytest.raises(HostError, match=f"answered {status} .*; name the final address in do.url"):
        webhook.post(server.url, b"{}", 2.0)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/", "data:,x", "nonsense", "http://", "http://[::1"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(HostError, match="webhook "):
        webhook.post(url, b"{}", 1.0)


def test_errors_are_host_errors_without_the_secret(server):
    server.answers = [500]
    with pytest.raises(HostError, match=r"http://127.0.0.1: answered 500") as raised:
        webhook.post(server.url, b"{}", 2.0)
    assert "secret" not in str(raised.value)
    with pytest.raises(HostError, match="refused"):
        webhook.post("http://127.0.0.1:1/secret", b"{}", 2.0)


def test_a_server_that_hangs_costs_the_timeout(server):
    server.answers = ["hang"]
    start = time.monotonic()
    with pytest.raises(HostError, match="timed out"):
        webhook.post(server.url, b"{}", 0.2)
    assert time.monotonic() - start < 2


def test_the_proxy_of_the_environment_does_not_count(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert webhook.post(server.url, b"{}", 2.0) == 200


# --- errands


@pytest.fixture
def tally():
    return Tally()


@pytest.fixture
def runner(tally):
    made = Errands(tally)
    yield made
    made.close(5.0)


def run(script, timeout=5.0):
    return Run(tuple(shell(script)), timeout, ME, DECISION)


def test_a_command_gets_its_decision_and_failures_count(runner, tally, tmp_path, caplog):
    runner.add(run(f"cat > {tmp_path}/in"))
    runner.add(run("exit 3"))
    runner.add(run("sleep 60", 0.1))
    wait_for(lambda: tally.all().get("command_failures") == 2)
    wait_for(lambda: (tmp_path / "in").exists() and (tmp_path / "in").stat().st_size)
    assert json.loads((tmp_path / "in").read_bytes())["network"] == "a"
    assert tally.all()["command_runs"] == 3
    assert {"policy p: command /bin/sh: status 3"} < {r.getMessage() for r in caplog.records}


def test_a_webhook_is_tried_again_and_then_given_up(runner, tally, server, monkeypatch):
    monkeypatch.setattr(errands, "WEBHOOK_PAUSE", 0.01)
    server.answers = [500, 500, 200, 500, 500, 500]
    runner.add(Post(server.url, 2.0, DECISION))
    wait_for(lambda: len(server.seen) == 3)
    runner.add(Post(server.url, 2.0, DECISION))
    wait_for(lambda: tally.all().get("webhook_given_up") == 1)
    assert len(server.seen) == 6
    assert tally.all() == {"webhook_posts": 2, "webhook_failures": 5, "webhook_given_up": 1}


def test_the_queue_is_bounded_and_never_waits(runner, tally):
    many = oneshot.WAITING_MAX + oneshot.THREADS + 10
    start = time.monotonic()
    for _ in range(many):
        runner.add(run("sleep 0.5"))
    assert time.monotonic() - start < 0.5
    assert tally.all()["errands_lost"] >= 10
    runner.close(5.0)
    counts = tally.all()
    assert counts["errands_lost"] + counts["command_runs"] == many
    assert time.monotonic() - start < 4
