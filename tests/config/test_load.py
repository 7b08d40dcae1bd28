"""The configuration: every mistake at once, each under its path, with the way out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.config.origin import both_marked, mark_bits
from scentd.config.sections import Config, Network, Peer
from scentd.errors import ConfigError
from scentd.kinds import config_from, load_config
from scentd.wire import keys

PUBLIC = str(keys.identity(bytes(32)).public)
OTHER = str(keys.identity(b"\1" * 32).public)
NETWORK = {"name": "acme", "key_file": "/k"}
PEER = {"name": "svc", "public_key": PUBLIC, "addresses": ["10.0.0.0/24", "fd00::/64"]}


def problems(**data) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        config_from({"network": [NETWORK], "peer": [PEER], **data})
    return refused.value.problems


def network(**more) -> list[str]:
    return problems(network=[{**NETWORK, **more}])


def peer(**more) -> list[str]:
    return problems(peer=[{**PEER, **more}])


def one(found: list[str], *words: str) -> None:
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


def test_a_small_one_has_defaults_that_work():
    made = config_from({"network": [NETWORK], "peer": [PEER]})
    assert made.network[0].interval == 5.0
    assert (made.verify.fail, made.stamp.fail) == ("closed", "open")
    assert made.verify.max_age == 60.0
    assert made.peer[0].rejected == "drop"
    assert made.peer[0].absent == "pass"


def test_units_become_numbers():
    made = config_from({"verify": {"max_age": "2m", "grace": "500ms"}})
    assert (made.verify.max_age, made.verify.grace) == (120.0, 0.5)


@pytest.mark.parametrize("value", [5, 5.0, "5", "5 parsecs", "", "nan s", "1e3s", True, ["5s"]])
def test_a_time_without_its_unit(value):
    one(problems(verify={"max_age": value}), "verify.max_age: ", '"5s"')


def test_ten_mistakes():
    found = problems(
        daemon={"log_level": "loud"},
        datapath={"workers": 0, "mark_stamped": 3, "mark_queued": 1},
        network=[{"name": "-bad", "key_file": "/k", "interval": "90s", "low": 0.9, "high": 0.1, "labels": ["x"]}],
        peer=[{**PEER, "addresses": [], "public_key": "short"}],
        policy=[{"name": "p", "when": "cpu >", "do": {"kind": "nothing"}}],
        nonsense=1,
    )
    for path in (
        "daemon.log_level", "datapath.workers", "datapath.mark_queued", "network[0].name",
        "peer[0].addresses", "peer[0].public_key", "policy[0].do.kind", "nonsense",
    ):  # fmt: skip
        assert [p for p in found if p.startswith(path)], (path, found)


def test_the_fields_of_a_network_are_checked_together():
    found = network(interval="90s", low=0.9, high=0.1, labels=["x"], weights={"cup": 1})
    assert [p.partition(":")[0] for p in found] == [
        "network[0].interval", "network[0].low", "network[0].weights.cup", "network[0].labels[0]",
    ]  # fmt: skip
    assert "did you mean cpu?" in found[2]


@pytest.mark.parametrize(
    ("marks", "path", "other"),
    [
        ({"mark_queued": 0x10000000}, "mark_queued", "mark_stamped"),
        ({"mark_verified": 0x30000000}, "mark_verified", "mark_stamped"),
        ({"mark_stamped": 0xF0, "mark_verified": 0x80}, "mark_verified", "mark_stamped"),
        ({"mark_queued": 0x60000000}, "mark_verified", "mark_queued"),
    ],
)
def test_each_mark_has_bits_of_its_own(marks, path, other):
    expected = f"datapath.{path}: shares bits with datapath.{other}; give each a bit of its own"
    assert expected in problems(datapath=marks)


def test_marks_of_several_bits_may_be_neighbours():
    marks = {"mark_stamped": 0x0C, "mark_queued": 0x30, "mark_verified": 0xC0}
    assert config_from({"datapath": marks}).datapath.mark_verified == 0xC0


@pytest.mark.parametrize("bits", [0, 0xFF, 0x1FE, 0x00FF0000, 0x0FF00000])
def test_the_glance_has_eight_neighbouring_bits(bits):
    assert config_from({"verify": {"mark_glance": bits}}).verify.mark_glance == bits


@pytest.mark.parametrize("bits", [1, 0x7F, 0x1FF, 0xF0F, 0x00FF00FF, 0x0F000000])
def test_other_bits_for_the_glance_are_refused(bits):
    one(problems(verify={"mark_glance": bits}), f"verify.mark_glance: {bits:#x} is not eight neighbouring bits")


@pytest.mark.parametrize("bits", [-1, 1 << 32, 0xFF << 25])
def test_the_glance_is_in_a_mark_of_32_bits(bits):
    one(problems(verify={"mark_glance": bits}), "verify.mark_glance: ")


@pytest.mark.parametrize("mark", ["mark_stamped", "mark_queued", "mark_verified"])
def test_the_glance_leaves_our_other_marks_alone(mark):
    one(problems(verify={"mark_glance": 0xFF00}, datapath={mark: 0x100}), "verify.mark_glance: shares bits")


def test_the_offload_is_on_where_it_can_be():
    made = config_from({}).datapath
    assert (made.offload, made.pin_dir) == ("auto", "/sys/fs/bpf/scentd")
    one(problems(datapath={"offload": "on"}), "datapath.offload: ", "'on'")


def test_unknown_keys_have_a_suggestion():
    one(problems(verfy={}), "verfy: unknown key; did you mean verify?")
    one(peer(stmap=True), "peer[0].stmap: unknown key; did you mean stamp?")


@pytest.mark.parametrize("address", ["10.0.0.1/24", "10.0.0.0/33", "fd00::/129", "host", "", "10.0.0"])
def test_addresses(address):
    one(peer(addresses=[address]), "peer[0].addresses[0]", "write 10.1.0.0/24")
    one(network(addresses=[address]), "network[0].addresses[0]")


def test_names_are_unique_and_keys_too():
    elsewhere = {**PEER, "addresses": ["10.9.0.1"]}
    one(problems(peer=[PEER, {**elsewhere, "name": "b"}]), "peer[1].public_key", "peer[0]")
    one(problems(peer=[PEER, {**elsewhere, "public_key": OTHER}]), "peer[1].name", "unique")


def test_peers_share_addresses_if_we_stamp_for_one_of_them():
    """Their packets are told apart by key; nothing tells apart what goes to them."""
    inner = {"name": "b", "public_key": OTHER, "addresses": ["10.0.0.7"]}
    stamping = [{**NETWORK, "stamp": True, "sign": False}]
    found = problems(network=stamping, peer=[PEER, inner])
    one(found, "peer[1].addresses", "10.0.0.7", "10.0.0.0/24", "peer[0]", "stamp = false")
    config_from({"network": stamping, "peer": [PEER, {**inner, "stamp": False}]})
    config_from({"network": [NETWORK], "peer": [PEER, inner]})  # it stamps for nobody


def test_an_origin_is_one_networks():
    """Of several networks each has interfaces and marks of its own, apart from the marks of scentd."""
    blue, forwarded = {**NETWORK, "name": "blue"}, {"forwarded": True}
    one(problems(network=[{**NETWORK, "interface": ["a b"]}]), "network[0].interface[0]", "'a b'", "letters")
    one(
        problems(network=[{**NETWORK, "stamp": True, "interface": ["tap0"]}]), "network[0].interface", "stamp.forwarded"
    )
    taps = [{**NETWORK, "interface": ["tap0"]}, {**blue, "interface": ["tap1", "tap0"]}]
    one(problems(network=taps, stamp=forwarded), "network[1].interface", "tap0", "network[0]")
    for mark in ("0x1/0x2", "0", "0/0xff", "1/0", "green", "0x100000000", "0x1/0x1/0x1"):
        one(problems(network=[{**NETWORK, "mark": mark}]), "network[0].mark", "VALUE/MASK")
    one(problems(network=[{**NETWORK, "mark": "0x10000000/0x1000ff00"}]), "network[0].mark", "0x1000ff00", "own marks")
    same = [{**NETWORK, "mark": "0x100/0xff00"}, {**blue, "mark": "0x100/0xff00"}]
    one(problems(network=same), "network[1].mark", "network[0]")
    both = [{**NETWORK, "mark": "0x100/0xff00"}, {**blue, "mark": "0x1/0xff"}]
    one(problems(network=both), "network[1].mark", "network[0]", "one mask")
    apart = [{**NETWORK, "mark": "0x100/0xff00"}, {**blue, "mark": "0x201/0xffff"}]
    config_from({"network": apart})
    config_from({"network": [{**NETWORK, "addresses": ["10.0.0.0/24"]}, {**blue, "interface": ["tap0"]}]})


def test_the_networks_of_marks_that_one_packet_can_have():
    assert both_marked({0x100: 0}, {0x1: 1}, 0) == [(1, 0)]
    assert both_marked({0x100: 0, 0x200: 1}, {0x201: 2}, 0xFF00) == [(2, 1)]
    assert both_marked({0x100: 0}, {0x201: 1}, 0xFF00) == []
    assert mark_bits("7") == (7, 0xFFFFFFFF)
    assert mark_bits("0x0100/0xff00") == (0x100, 0xFF00)


def test_labels_leave_room_in_the_filter():
    one(network(labels=[f"l{i}=x" for i in range(9)]), "network[0].labels", "8")


def test_a_peer_needs_an_identity_here():
    one(problems(network=[]), "network: missing", "key_file")


def test_policies_name_what_there_is():
    do = {"kind": "quarantine"}
    one(problems(policy=[{"name": "p", "when": "true", "do": do, "peer": "svcc"}]), "policy[0].peer", "svc")
    one(problems(policy=[{"name": "p", "when": "cup > 0.5", "do": do}]), "policy[0].when", "cup")
    one(problems(policy=[{"name": "p", "when": "cpu > 0.5", "do": do, "matches": 3, "profiles": 2}]), ".matches")


def test_a_missing_field_and_a_wrong_table():
    assert "peer[0].public_key: missing" in problems(peer=[{"name": "a", "addresses": ["10.0.0.1"]}])
    one(problems(verify=7), "verify: expected a table")
    one(problems(network=[{**NETWORK, "source": [{"kind": "cpuu"}]}]), "network[0].source[0].kind", '"cpu"')


def test_files(tmp_path):
    path = tmp_path / "scentd.toml"
    with pytest.raises(ConfigError, match=r"No such file.*--config"):
        load_config(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path)
    path.write_text("a = [1,")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
sections = st.sampled_from([*Config.__struct_fields__, "other"])


def told(data: dict) -> list[str]:
    """The mistakes of any data; none is fine, another exception is not."""
    try:
        config_from(data)
    except ConfigError as error:
        return error.problems
    return []


@given(st.dictionaries(sections, values, max_size=4))
def test_no_toml_breaks_it(data):
    """A Config, or ConfigError with paths: never anything else."""
    assert all(": " in problem for problem in told(data))


@given(st.sampled_from(Network.__struct_fields__), values)
def test_no_value_of_a_network_breaks_it(field, value):
    assert all(": " in problem for problem in told({"network": [{**NETWORK, field: value}]}))


@given(st.sampled_from(Peer.__struct_fields__), values)
def test_no_value_of_a_peer_breaks_it(field, value):
    assert all(": " in problem for problem in told({"network": [NETWORK], "peer": [{**PEER, field: value}]}))


def peer_problems(**more):
    return problems(network=[NETWORK], peer=[{**PEER, **more}])


def test_several_verifiers_behind_one_address():
    addresses = ["192.0.2.11", "2001:db8::12"]
    assert load(peer={"verifiers": 16}).has_several_verifiers
    assert load(peer={"verifier_endpoint": addresses}).has_several_verifiers
    assert not load(peer={"endpoint": addresses}).has_several_verifiers
    both = "peer[0].verifier_endpoint: names each verifier's address; take peer[0].endpoint and peer[0].verifiers away"
    assert peer_problems(verifier_endpoint=addresses, verifiers=2) == [both]
    assert peer_problems(verifier_endpoint=addresses, endpoint=addresses) == [both]
    prefix = "peer[0].verifier_endpoint[1]: '192.0.2.0/24' is a prefix; write one address"
    assert peer_problems(verifier_endpoint=["192.0.2.1", "192.0.2.0/24"]) == [prefix]
    for verifiers in (0, 17):
        assert peer_problems(verifiers=verifiers)[0].startswith("peer[0].verifiers: ")


def load(peer):
    return config_from({"network": [NETWORK], "peer": [{**PEER, **peer}]}).peer[0]


def test_a_choice_is_told():
    assert problems(peer=[{**PEER, "rejected": "block"}]) == [
        'peer[0].rejected: Invalid enum value \'block\'; one of "drop", "reject", "pass"'
    ]


def test_one_table_where_several_may_stand():
    assert problems(peer=PEER) == ["peer: there may be several, each begins with [[peer]]"]
    assert problems(network=[{**NETWORK, "source": {"kind": "cpu"}}]) == [
        "network[0].source: there may be several, each begins with [[network.source]]"
    ]


def test_a_byte_order_mark(tmp_path):
    path = tmp_path / "scentd.toml"
    path.write_bytes(b"\xef\xbb\xbf[daemon]\n")
    with pytest.raises(ConfigError, match="begins with a byte order mark, which TOML has not"):
        load_config(path)


@pytest.mark.parametrize("lag", ["56s", "1.5s", "500ms"])
def test_a_lag_is_whole_seconds_and_no_more_than_55(lag):
    assert network(lag=lag) == ["network[0].lag: write whole seconds, 0 to 55; 0s for a network of one stamper"]
    assert config_from({"network": [{"name": "a", "key_file": "/k", "lag": "55s"}]}).network[0].lag == 55
