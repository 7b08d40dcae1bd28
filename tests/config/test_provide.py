"""Which resources an allocator elsewhere decides of, and which are elsewhere."""

import pytest

from scentd.config.provide import elsewhere, offered
from scentd.errors import ConfigError
from scentd.kinds import config_from
from scentd.wire import keys

KEY, OTHER = (str(keys.identity(bytes((n,)) * 32).public) for n in (1, 2))
POLICY = {"name": "p", "when": "cpu > 0.5", "do": {"kind": "amount", "resource": "eyes", "to": 1}}


def config(duty, resource=(), policies=(), **more):
    bus = {"url": ["nats://h:1"], "name": "db", "key_file": "k"}
    return config_from(
        {
            "bus": bus | {"host": [{"name": "other", "public_key": KEY, "duties": [duty]}]},
            "network": [{"name": "own", "key_file": "own.key"}],
            "peer": [{"name": "acme", "public_key": OTHER, "addresses": ["10.1.0.0/16"]}],
            "resource": [{"name": "eyes", "kind": "monitor", **dict(resource)}],
            "policy": list(policies),
            **more,
        }
    )


def test_what_no_policy_here_asks_for_is_offered_to_allocators():
    assert [r.name for r in offered(config("allocate"))] == ["eyes"]
    assert [r.name for r in offered(config("allocate", {"host": "db"}))] == ["eyes"]
    assert offered(config("allocate", policies=[POLICY])) == []
    assert offered(config("provide")) == []


def test_what_another_host_has_is_elsewhere():
    assert elsewhere(config("provide", {"host": "other"}, [POLICY])) == ["eyes"]
    assert elsewhere(config("provide", {"host": "db"})) == elsewhere(config("provide")) == []


def test_who_has_a_resource_must_provide():
    with pytest.raises(ConfigError, match=r"resource\[0\].host: no host that provides is named 'ether'; did you mean"):
        config("provide", {"host": "ether"})
    with pytest.raises(ConfigError, match="no host that provides is named 'other'"):
        config("allocate", {"host": "other"})


def test_a_budget_is_with_who_decides():
    budget = [{"name": "b", "resources": ["eyes"], "total": 1}]
    with pytest.raises(ConfigError, match="eyes is for an allocator elsewhere to decide of; write the budget there"):
        config("allocate", budget=budget)
    config("allocate", policies=[POLICY], budget=budget)
