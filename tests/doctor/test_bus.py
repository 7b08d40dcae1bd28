"""What doctor says of a fleet's duties; the servers themselves are asked in tests/netns/test_fleet.py."""

import pytest

from scentd.doctor.bus import duties
from scentd.kinds import config_from
from scentd.wire import keys

KEY = str(keys.identity(b"\1" * 32).public)


@pytest.mark.parametrize(
    ("duty", "host", "said"),
    [
        ("provide", "other", "; allocates resources of other under the lease of here"),
        ("allocate", "", "; provides eyes for other"),
        ("collect", "", ""),
    ],
)
def test_who_gives_and_who_decides(duty, host, said):
    bus = {"url": ["nats://h:1"], "name": "here", "key_file": "k"}
    config = config_from(
        {
            "bus": bus | {"host": [{"name": "other", "public_key": KEY, "duties": [duty]}]},
            "resource": [{"name": "eyes", "kind": "monitor", "host": host}],
        }
    )
    assert duties(config) == said
