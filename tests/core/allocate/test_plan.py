from ipaddress import ip_network

from firings import EMPTY, firing, policies
from msgspec.structs import replace

from scentd.core.allocate import plan
from scentd.core.allocate.actions.bandwidth import BandwidthAction
from scentd.core.allocate.actions.command import CommandAction
from scentd.core.allocate.actions.quarantine import QuarantineAction, QuarantineEntry
from scentd.core.allocate.actions.webhook import WebhookAction
from scentd.model import Desired

NODE = ip_network("10.0.0.7/32")
QUARANTINE = QuarantineAction(timeout=60.0)
BANDWIDTH = BandwidthAction(interface="eth0", step=10e6, floor=10e6, ceiling=25e6)


ALONE: dict = {"a": ()}  # the peer shares no address


def test_reload_keeps_what_is_still_spoken_of():
    both = policies(BANDWIDTH, QUARANTINE)
    state = Desired(
        {"quarantine": {NODE: QuarantineEntry(60.0, 60.0, "a", "p1", 1)}, "bandwidth": {("a", "eth0"): 22e6}}
    )
    assert plan.reload(state, both, ALONE, 1.0).desired == state
    smaller = plan.reload(state, policies(replace(BANDWIDTH, ceiling=20e6), QUARANTINE), ALONE, 1.0)
    assert smaller.desired.of("bandwidth") == {("a", "eth0"): 20e6}
    assert [(d.before, d.after) for d in smaller.decisions] == [("22mbit", "20mbit")]
    gone = plan.reload(state, [], ALONE, 1.0)
    assert gone.desired == EMPTY
    assert {(d.action, d.target) for d in gone.decisions} == {("release", "10.0.0.7"), ("release", "eth0")}


def test_commands_and_webhooks_are_oneshots_with_their_decision():
    command = CommandAction(argv=["/usr/bin/scale", "up db"], timeout=3.0, user="pg")
    webhook = WebhookAction(url="https://hooks.example.org/secret/token?x=y")
    made = plan.plan(EMPTY, [firing(command), firing(webhook)], 0.0)
    assert [(o.action, o.decision) for o in made.oneshots] == list(zip((command, webhook), made.decisions, strict=True))
    assert [d.after for d in made.decisions] == ["/usr/bin/scale 'up db'", "https://hooks.example.org"]
    assert made.desired == EMPTY


def test_a_bad_url_is_no_trouble_here():
    assert plan.plan(EMPTY, [firing(WebhookAction(url="http://[::1"))], 0.0).decisions[0].after == "(not a URL)"
