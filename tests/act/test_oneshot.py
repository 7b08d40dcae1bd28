"""Commands and webhooks, each carried out once, by the threads of oneshot.py."""

import json
import time

import pytest
from deeds import DECISION, ME, server, shell, wait_for
from firings import firing

from scentd.act import oneshot, webhook
from scentd.act.actuator import Tally
from scentd.act.oneshot import Oneshots
from scentd.core.allocate.actions.command import CommandAction
from scentd.core.allocate.actions.webhook import WebhookAction
from scentd.model import Oneshot

__all__ = ["server"]  # the fixture


@pytest.fixture
def tally():
    return Tally()


@pytest.fixture
def oneshots(tally):
    made = Oneshots(tally, lambda _: None)
    yield made
    made.close(5.0)


def run(script, timeout=5.0):
    action = CommandAction(argv=shell(script), timeout=timeout, user=ME)
    return Oneshot(action, DECISION, firing(action))


def post(url, **settings):
    action = WebhookAction(**{"url": url, "timeout": 2.0, **settings})
    return Oneshot(action, DECISION, firing(action))


def test_a_command_gets_its_decision_and_failures_count(oneshots, tally, tmp_path, caplog):
    oneshots.add(run(f"cat > {tmp_path}/in"))
    oneshots.add(run("exit 3"))
    oneshots.add(run("sleep 60", 0.1))
    wait_for(lambda: tally.all().get("command_failures") == 2)
    wait_for(lambda: (tmp_path / "in").exists() and (tmp_path / "in").stat().st_size)
    assert json.loads((tmp_path / "in").read_bytes())["peer"] == "a"
    assert tally.all()["command_runs"] == 3
    assert {"policy p: command /bin/sh: status 3"} < {r.getMessage() for r in caplog.records}


def test_a_webhook_is_tried_again_and_then_given_up(oneshots, tally, server, monkeypatch):
    monkeypatch.setattr(webhook, "PAUSE", 0.01)
    server.answers = [500, 500, 200, 500, 404]
    oneshots.add(post(server.url))
    wait_for(lambda: len(server.seen) == 3)
    oneshots.add(post(server.url))
    wait_for(lambda: tally.all().get("webhook_given_up") == 1)
    assert tally.all() == {"webhook_posts": 2, "webhook_retries": 3, "webhook_failures": 4, "webhook_given_up": 1}


def test_what_waits_for_another_try_holds_no_thread(oneshots, tally, server, tmp_path):
    """More of them than there are threads, on a server that asks for a minute; a command runs all the same."""
    server.answers, server.extra = [503] * 20, {"Retry-After": "60"}
    for _ in range(20):
        oneshots.add(post(server.url))
    wait_for(lambda: tally.all().get("webhook_failures") == 20)
    oneshots.add(run(f"touch {tmp_path}/made"))
    wait_for((tmp_path / "made").exists)
    oneshots.close(5.0)
    assert tally.all()["oneshots_lost"] == 20  # a stop loses them


def test_servers_that_hang_leave_threads_to_what_is_new(oneshots, tally, server, tmp_path, monkeypatch):
    monkeypatch.setattr(webhook, "PAUSE", 0.01)
    server.answers = [500] * 8 + ["hang"] * 100
    for _ in range(8):
        oneshots.add(post(server.url))
    wait_for(lambda: tally.all().get("webhook_retries", 0) >= 2)
    for i in range(10):
        oneshots.add(run(f"touch {tmp_path}/{i}"))
    wait_for(lambda: len(list(tmp_path.iterdir())) == 10, 1.5)  # less than the webhooks' timeout
    assert tally.all()["webhook_failures"] == 8  # the tries that hang still do


def test_so_many_wait_for_another_try_and_the_rest_is_lost(oneshots, tally, server, monkeypatch):
    monkeypatch.setattr(oneshot, "RETRIES_MAX", 3)
    server.answers, server.extra = [503] * 10, {"Retry-After": "60"}
    for _ in range(10):
        oneshots.add(post(server.url))
    wait_for(lambda: tally.all().get("oneshots_lost") == 7)


def test_the_queue_is_bounded_and_never_waits(oneshots, tally):
    many = oneshot.WAITING_MAX + oneshot.THREADS + 10
    start = time.monotonic()
    for _ in range(many):
        oneshots.add(run("sleep 0.5"))
    assert time.monotonic() - start < 0.5
    assert tally.all()["oneshots_lost"] >= 10
    oneshots.close(5.0)
    counts = tally.all()
    assert counts["oneshots_lost"] + counts["command_runs"] == many
    assert time.monotonic() - start < 4


def test_who_waits_for_the_end_is_told(tally):
    done = []
    made = Oneshots(tally, done.append)
    one = run("exit 0")
    made.add(one)
    wait_for(lambda: done == [one])
    made.close(5.0)
