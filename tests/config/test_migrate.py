"""A configuration of old names gets today's, and nothing else of it changes."""

import tomllib

import pytest

from scentd.config.migrate import migrate
from scentd.errors import ConfigError
from scentd.kinds import config_from

OLD = """\
# ours
[daemon]
state_dir = "/network"   # network

[[network]]
name = "acme"
key_file = "/k"
  [[ network . collect ]]  # what we read
  kind = "cpu"

[[network.collect]]
kind = "eve"
socket = "/run/network.sock"

[[peer]]
name = "network"
public_key = "{key}"
addresses = ["192.0.2.1"]

[[policy]]
name = "one"
network = "network"   # whom
when = 'network == "network" && cpu > 0.8 // network'
do = {{ kind = "quarantine" }}

[[policy]]
name = "two"
when="network.startsWith(\\"network\\") && has('network=x')"  # and so on
  [policy.do]
  kind = "quarantine"
"""
NEW = OLD.replace("network . collect", "network.source").replace("network.collect", "network.source").replace(
    'network = "network"', 'peer = "network"').replace("network == ", "peer == ").replace(
    "network.startsWith", "peer.startsWith")  # fmt: skip


def keyed(text: str) -> str:
    from scentd.wire import keys

    return text.format(key=keys.identity(bytes(32)).public)


def test_names_change_and_nothing_else():
    made, said = migrate(keyed(OLD))
    assert made == keyed(NEW)
    assert said == [
        "network[0].collect -> source",
        "policy[0].network -> peer",
        'policy[0].when -> peer == "network" && cpu > 0.8 // network',
        "policy[1].when -> peer.startsWith(\"network\") && has('network=x')",
    ]
    with pytest.raises(ConfigError):
        config_from(tomllib.loads(keyed(OLD)))
    assert config_from(tomllib.loads(made)).policy[0].peer == "network"


def test_what_has_today_s_names_stays():
    assert migrate(keyed(NEW)) == (keyed(NEW), [])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('policy = [{ name = "x", network = "y" }]\n', "policy[0].network"),
        ('[[policy]]\n"network" = "x"\n', "policy[0].network"),
        ('policy = [{ when = \'network == "x"\' }]\n', "policy[0].when"),
        ('[[policy]]\npeer = "a"\nnetwork = "b"\n', "policy[0].network"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_named_and_left(text, place):
    with pytest.raises(ConfigError) as raised:
        migrate(text)
    assert any(problem.startswith(f"{place}: write ") for problem in raised.value.problems)


def test_what_is_no_toml():
    with pytest.raises(ConfigError, match="not valid TOML"):
        migrate("[[policy\n")
