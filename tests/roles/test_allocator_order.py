"""Which views count for the allocator: the bus promises no order, and clocks may have been wrong."""

import time
from contextlib import closing

import pytest

from scentd.bus.local import LocalBus
from scentd.kinds import config_from
from scentd.model import Notice, Profile, View, Views
from scentd.roles.allocator import AllocatorRole
from scentd.wire import bloom, keys, layout

KEY = str(keys.identity(b"\1" * 32).public)
FILTER = bloom.to_bits(bytes(layout.BLOOM_LEN)).tobytes()


class Allocating:
    """An allocator without actuators; `fired` are the epochs of what it decided."""

    def __init__(self, path) -> None:
        busy = {"name": "busy", "when": "cpu > 0.5", "do": {"kind": "command", "argv": ["/bin/true"]}}
        daemon = {"state_dir": str(path)}
        peer = {"name": "p", "public_key": KEY, "addresses": ["192.0.2.1"]}
        network = {"name": "n", "key_file": "k", "sign": True, "addresses": ["192.0.2.9"]}
        config = config_from({"daemon": daemon, "network": [network], "policy": [busy], "peer": [peer]})
        self.bus = LocalBus()
        self.role = AllocatorRole(config, self.bus)
        self.fired: list[int] = []
        self.bus.subscribe(Notice, self._on_notice)

    def close(self) -> None:
        self.role.close(remove=False)

    def _on_notice(self, notice: Notice) -> None:
        if notice.event == "decision":
            self.fired.append(notice.fields["epoch"])

    def say(self, epoch: int, cpu: float) -> None:
        profile = Profile("p", epoch, 5, cpu, {"cpu": cpu}, FILTER)
        self.bus.publish(Views((View("p", (profile,), time.time()),)))


@pytest.fixture
def allocating(tmp_path):
    with closing(Allocating(tmp_path)) as made:
        yield made


def test_an_older_view_changes_nothing(allocating):
    now = int(time.time())
    allocating.say(now, 0.1)
    allocating.say(now - 5, 0.9)
    assert allocating.fired == []
    allocating.say(now + 5, 0.9)
    assert allocating.fired == [now + 5]


def test_after_a_wrong_clock_lower_epochs_count_again(allocating):
    """Both ends' clocks were ten minutes ahead when the first one was accepted."""
    now = int(time.time())
    allocating.say(now + 600, 0.1)
    allocating.say(now, 0.9)
    assert allocating.fired == [now]
    allocating.say(now - 5, 0.1)
    allocating.say(now, 0.9)
    assert allocating.fired == [now], "the older view has not counted: the policy stayed true"
