"""From a configuration to the tables of the packet path; both ends derive the same keys."""

from ipaddress import ip_network

from msgspec.structs import replace

from scentd.config.sections import Config, Stamp
from scentd.core.pairs import ANY, Pairs
from scentd.core.tables import INTERFACE, Origin
from scentd.kinds import config_from
from scentd.model import Barred, PeerPrefix
from scentd.wire import keys, layout

IDENTITIES = {name: keys.identity(bytes((n,)) * 32) for n, name in enumerate(("acme", "quiet", "svc", "cdn", "new"))}
PERIOD = 500_000


def made(networks=("acme",), peers=("svc",), **peer) -> Config:
    collect = {"acme": [{"kind": "cpu"}]}
    return config_from(
        {
            "network": [
                {"name": n, "key_file": "/k", "addresses": ["10.1.0.0/24" if n == "acme" else "10.9.0.0/24"],
                 "source": collect.get(n, [])}
                for n in networks
            ],
            "peer": [
                {"name": p, "public_key": str(IDENTITIES[p].public), "addresses": [f"10.{i + 2}.0.0/24"], **peer}
                for i, p in enumerate(peers)
            ],
        }
    )  # fmt: skip


def pairs(settings: Config, numbers=None, following=(), revoked=()) -> Pairs:
    """`following`: the next key of each network; `revoked`: names.

    `numbers` are kept by the epoch file in a daemon; here names get the next one when they are first seen.
    """
    numbers = {} if numbers is None else numbers
    for network in settings.network:
        for peer in settings.peer:
            numbers.setdefault((network.name, peer.name), len(numbers))
    own = {name: (identity, *following) for name, identity in IDENTITIES.items()}
    return Pairs(settings, own, numbers, {str(IDENTITIES[name].public) for name in revoked})


def test_every_network_with_every_peer():
    found = pairs(made(("acme", "quiet"), ("svc", "cdn")))
    assert [(p.network.name, p.peer.name) for p in found.all] == [
        ("acme", "svc"), ("acme", "cdn"), ("quiet", "svc"), ("quiet", "cdn"),
    ]  # fmt: skip
    assert sorted(found.by_number) == [0, 1, 2, 3]


def test_numbers_stay_over_reloads():
    """Workers keep what they know by number: one that leaves and comes back has its old one, a new one a new one."""
    numbers: dict = {}
    first = {p.peer.name: p.number for p in pairs(made(peers=("svc", "cdn")), numbers).all}
    assert {p.peer.name: p.number for p in pairs(made(peers=("cdn",)), numbers).all} == {"cdn": first["cdn"]}
    assert {p.peer.name: p.number for p in pairs(made(peers=("cdn", "svc")), numbers).all} == first
    assert pairs(made(("quiet",)), numbers).all[0].number not in first.values()


def test_the_ends_derive_the_same_keys():
    here = pairs(made()).all[0]
    mirrored = config_from(
        {
            "network": [{"name": "svc", "key_file": "/k"}],
            "peer": [{"name": "acme", "public_key": str(IDENTITIES["acme"].public), "addresses": ["10.1.0.0/24"]}],
        }
    )
    there = pairs(mirrored).all[0]
    period = keys.period_of(PERIOD * layout.PERIOD)
    (ours,), (theirs,) = here.secrets, there.secrets
    assert here.issued.keys_at(PERIOD * layout.PERIOD).tag == theirs.receive_keys(period).tag
    assert there.issued.keys_at(PERIOD * layout.PERIOD).tag == ours.receive_keys(period).tag
    assert ours.receive_keys(period).tag != theirs.receive_keys(period).tag, "each direction has its own"
    assert theirs.pseudonym_key == here.issued.pseudonym_key


def test_the_stamp_table():
    table = pairs(made(("acme", "quiet"), ("svc", "cdn"))).stamp_table((("10.2.0.0/24", 1500),))
    assert table.networks == (("10.1.0.0/24", 0),), "a network without sources has nothing to say"
    assert table.peers == (("10.2.0.0/24", 0), ("10.3.0.0/24", 1))
    assert [(p.network, p.peer) for p in table.pairs] == [(0, 0), (0, 1)]
    assert table.limits == (("10.2.0.0/24", 1500),)


def test_a_network_without_addresses_is_the_whole_host():
    settings = config_from(
        {
            "network": [{"name": "acme", "key_file": "/k", "source": [{"kind": "cpu"}]}],
            "peer": [{"name": "svc", "public_key": str(IDENTITIES["svc"].public), "addresses": ["10.2.0.0/24"]}],
        }
    )
    assert pairs(settings).stamp_table(()).networks == tuple((prefix, 0) for prefix in ANY)


def test_addresses_that_no_network_has():
    """Of an IP version that peers have. A gateway's own may all be outside."""
    found = pairs(made())
    assert found.uncovered(["10.1.0.1", "10.5.0.1", "fe80::1", "fd00::1"]) == ["10.5.0.1"]
    assert found.uncovered(["10.5.0.1", "fd00::1"]) == ["10.5.0.1"]
    assert found.uncovered(["10.1.0.1"]) == []
    gateway = pairs(replace(made(), stamp=Stamp(forwarded=True)))
    assert gateway.uncovered(["10.5.0.1"]) == []
    assert gateway.uncovered(["10.1.0.1", "10.5.0.1"]) == ["10.5.0.1"]
    assert pairs(made(stamp=False)).uncovered(["10.1.0.1", "10.5.0.1"]) == []


def test_a_peer_that_is_not_stamped_or_not_verified():
    no_stamp, no_verify = pairs(made(stamp=False)), pairs(made(verify=False))
    assert no_stamp.stamp_table(()).pairs == ()
    assert no_stamp.stamp_table(()).peers == ()
    assert no_stamp.issued_pairs("acme") == []
    assert len(no_stamp.verify_table(PERIOD).incoming) == 1
    assert no_verify.verify_table(PERIOD).incoming == ()
    assert len(no_verify.stamp_table(()).pairs) == 1


def test_the_verify_table():
    found = pairs(made(bind="sender", rejected="reject", absent="drop", absent_ipv6_fragments="pass"))
    table = found.verify_table(PERIOD)
    (incoming,) = table.incoming
    assert incoming.slot == found.all[0].number
    assert incoming.sender_bound
    (made_keys,) = incoming.keys
    assert made_keys.key_ids == ids("svc", "acme")
    assert sorted(made_keys.tag_keys) == sorted(made_keys.glance_keys) == [PERIOD - 1, PERIOD, PERIOD + 1]
    assert len(set(made_keys.tag_keys.values())) == 3
    ((prefix, treatments),) = table.treatments
    assert prefix == "10.2.0.0/24"
    assert (treatments.rejected, treatments.absent, treatments.absent_ipv6_fragment) == ("reject", "drop", "pass")
    assert (table.default.rejected, table.default.absent) == ("drop", "pass")


def test_fragments_are_treated_as_absent_ones_by_default():
    ((_, treatments),) = pairs(made(absent="drop")).verify_table(PERIOD).treatments
    assert treatments.absent_ipv6_fragment == "drop"


def test_no_secret_is_shown():
    shown = repr(pairs(made()).all[0])
    assert pairs(made()).all[0].issued.secret.hex() not in shown
    assert "issued" not in shown


# -- two keys ------------------------------------------------------------


def ids(sender: str, receiver: str) -> bytes:
    return IDENTITIES[sender].public.key_id + IDENTITIES[receiver].public.key_id


def changing(**more) -> Pairs:
    """Both ends change their key: acme's next is that of quiet here, svc's next that of cdn."""
    settings = made(next_public_key=str(IDENTITIES["cdn"].public))
    return pairs(settings, following=(IDENTITIES["quiet"],), **more)


def test_every_key_of_a_peer_with_every_key_of_ours():
    (incoming,) = changing().verify_table(PERIOD).incoming
    assert {sender: [k.key_ids for k in found] for sender, found in incoming.by_sender().items()} == {
        IDENTITIES["svc"].public.key_id: [ids("svc", "acme"), ids("svc", "quiet")],
        IDENTITIES["cdn"].public.key_id: [ids("cdn", "acme"), ids("cdn", "quiet")],
    }, "ours in use comes first"
    assert len({key for k in incoming.keys for key in k.tag_keys.values()}) == 12


def test_signed_by_the_key_in_use_and_made_for_the_peers_next():
    (issued,) = changing().issued_pairs("acme")
    assert (issued.identity, issued.public) == (IDENTITIES["acme"], IDENTITIES["cdn"].public)
    assert changing().all[0].secret_of(ids("svc", "quiet")).identity is IDENTITIES["quiet"]
    assert changing().all[0].secret_of(ids("svc", "new")) is None


def test_a_stolen_key_is_one_of_the_two():
    one = changing(revoked=("cdn",))
    assert [k.key_ids for k in one.verify_table(PERIOD).incoming[0].keys] == [ids("svc", "acme"), ids("svc", "quiet")]
    assert one.issued_pairs("acme")[0].public == IDENTITIES["svc"].public
    both = changing(revoked=("cdn", "svc"))
    assert (both.verify_table(PERIOD).incoming, both.stamp_table(()).pairs, both.issued_pairs("acme")) == ((), (), [])


def test_what_an_earlier_daemon_sent_may_have_any_of_the_keys():
    found = changing().tag_keys(0, PERIOD * layout.PERIOD)
    assert len(set(found)) == 4
    assert changing().issued_pairs("acme")[0].keys_at(PERIOD * layout.PERIOD).tag in found
    assert changing().tag_keys(9, PERIOD * layout.PERIOD) is None


def test_networks_with_an_origin_are_not_found_by_their_source():
    """Interfaces come before marks; one that is not there has no origin. Without addresses nothing is verified."""
    settings = made(("acme", "quiet"))
    acme, quiet = settings.network
    acme = replace(acme, addresses=[], interface=["tap0", "tap1"], mark="0x100/0xff00")
    found = pairs(replace(settings, network=[replace(quiet, stamp=True), acme], stamp=Stamp(forwarded=True)))
    table = found.stamp_table((), {"tap1": 7})
    number = found.by_name["acme", "svc"].number
    assert table.origins == (Origin(INTERFACE, 7, number), Origin(0xFF00, 0x100, number))
    assert [prefix for prefix, _ in table.networks] == ["10.9.0.0/24"]
    assert found.stamp_table(()).origins == table.origins[1:]
    assert [i.pair for i in found.verify_table(PERIOD).incoming] == [found.by_name["quiet", "svc"].number]
    assert found.uncovered(["10.9.0.1", "10.1.0.1"]) == ["10.1.0.1"]


def test_who_is_barred_by_prefix_and_who_by_key():
    found = pairs(made(("acme", "quiet"), ("svc", "cdn")))
    one, other = ip_network("10.2.0.1/32"), ip_network("10.2.0.2/32")
    barred = Barred({one: 5.0, PeerPrefix(other, "svc"): 6.0, PeerPrefix(one, "gone"): 7.0})
    numbers = [p.number for p in found.all if p.peer.name == "svc"]
    assert found.barred(barred) == ({"10.2.0.1/32": 5.0}, {n: {"10.2.0.2/32": 6.0} for n in numbers})
