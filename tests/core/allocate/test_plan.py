import dataclasses
from ipaddress import ip_network

from firings import EMPTY, firing, policies
from msgspec.structs import replace

from scentd.core.allocate import plan
from scentd.core.allocate.actions.command import CommandAction
from scentd.core.allocate.actions.quarantine import QuarantineAction, QuarantineEntry
from scentd.core.allocate.actions.webhook import WebhookAction
from scentd.model import Desired

NODE = ip_network("10.0.0.7/32")
QUARANTINE = QuarantineAction(timeout=60.0)


ALONE: dict = {"a": ()}  # the peer shares no address


def test_reload_keeps_what_is_still_spoken_of():
    state = Desired({"quarantine": {NODE: QuarantineEntry(60.0, 60.0, "a", "p0", 1)}})
    assert plan.reload(state, policies(QUARANTINE), ALONE, 1.0).desired == state
    gone = plan.reload(state, [], ALONE, 1.0)
    assert gone.desired == EMPTY
    assert {(d.action, d.target) for d in gone.decisions} == {("release", "10.0.0.7")}


def test_a_dry_run_says_once_what_it_would_do():
    first = firing(QUARANTINE, targets=(NODE,))
    first = dataclasses.replace(first, policy=replace(first.policy, dry_run=True))
    made = plan.plan(EMPTY, [first])
    assert (made.desired, made.oneshots) == (EMPTY, ())
    assert [(d.action, d.target) for d in made.decisions] == [("dry-run quarantine", "10.0.0.7")]
    assert plan.plan(EMPTY, [dataclasses.replace(first, repeated=True)]) == plan.Plan(EMPTY)


def test_commands_and_webhooks_are_oneshots_with_their_decision():
    command = CommandAction(argv=["/usr/bin/scale", "up db"], timeout=3.0, user="pg")
    webhook = WebhookAction(url="https://hooks.example.org/secret/token?x=y")
    made = plan.plan(EMPTY, [firing(command), firing(webhook)])
    assert [(o.action, o.decision) for o in made.oneshots] == list(zip((command, webhook), made.decisions, strict=True))
    assert [d.after for d in made.decisions] == ["/usr/bin/scale 'up db'", "https://hooks.example.org"]
    assert made.desired == EMPTY


def test_a_bad_url_is_no_trouble_here():
    assert plan.plan(EMPTY, [firing(WebhookAction(url="http://[::1"))]).decisions[0].after == "(not a URL)"
