"""Views and deciders for tests of policies."""

from scentd.config.policy import Policy
from scentd.config.resource import Resource
from scentd.core.allocate.actions.command import CommandAction
from scentd.core.allocate.amounts import Amounts
from scentd.core.allocate.decide import Decider
from scentd.model import Profile, View
from scentd.wire import bloom

COMMAND = CommandAction(argv=["/bin/true"])
RATE = Resource(name="rate", minimum=0.0, maximum=50.0)


def policy(expression="cpu > 0.8", do=COMMAND, **more):
    return Policy(name=more.pop("name", "p"), when=expression, do=do, **more)


def profile(epoch=100, items=(), overall=0.5, interval=5, **levels):
    return Profile("a", epoch, interval, overall, levels, bloom.make(items, epoch))


def view(*profiles, at=0.0, **more):
    return View("a", profiles or (profile(cpu=0.9),), received_at=at, **more)


def amounts_of(observed=10.0):
    amounts = Amounts([RATE], [], ["a"])
    amounts.observe("rate", {"a": observed}, (), 0.0)
    return amounts


def decider_of(policies, amounts=None):
    return Decider(policies, amounts or amounts_of())


def outcome(decider, seen, now=0.0):
    return decider.explain(seen, now)[0].outcome


def fires(decider, seen, now=0.0):
    return len(decider.decide(seen, now))
