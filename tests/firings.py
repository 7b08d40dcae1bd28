"""Firings of policies, for the tests of what becomes of them."""

from scentd.config.policy import Policy
from scentd.model import Desired, Firing

EMPTY = Desired()


def firing(do, at=0.0, targets=(), peer="a", name="p", epoch=100, **accepted):
    policy = Policy(name=name, when="cpu > 0.8", do=do)
    return Firing(at, policy, peer, epoch, targets, {"cpu": 0.9}, "cpu > 0.8 [cpu=0.9]", **accepted)


def policies(*dos, peer="*"):
    return [Policy(name=f"p{i}", when="true", do=do, peer=peer) for i, do in enumerate(dos)]
