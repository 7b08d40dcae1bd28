"""The vectors, in both directions, by scentd and by a second implementation of the text."""

import base64
import json
import struct
import subprocess
import sys
from functools import cache
from ipaddress import ip_address
from pathlib import Path

import carriers
import foreign
import pytest
import wire_setup
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from scentd.core.packet.stamp import Stamper
from scentd.core.packet.verify import Outcome
from scentd.wire import bloom, ip, keys, layout, profile, scapy_layer

ROOT = Path(__file__).resolve().parents[2]


@cache
def load(name):
    return json.loads((ROOT / "tests" / "vectors" / name).read_text())


def named(file, kind):
    return pytest.mark.parametrize("vector", load(file)[kind], ids=lambda v: v.get("name") or v.get("sender"))


def accepted(packet, now=wire_setup.NOW):
    return wire_setup.verifier(now).verify(packet)


def scent_of(packet):
    found = ip.parse(packet)
    return packet[found.scent_at : found.scent_at + layout.LEN], found


def test_vectors_are_what_the_code_makes():
    run = subprocess.run([sys.executable, ROOT / "scripts" / "gen-vectors", "--check"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_reason_has_a_vector():
    refused = load("rejected.json")["packets"]
    assert {v["verdict"] for v in refused} == set(layout.VERDICTS.values())
    left = {v["reason"] for v in load("packets.json")["unstamped"]}
    hidden = {"masqueraded", "translated", "tunnelled"}
    assert left | hidden == set(layout.UNSTAMPED.values()), "no packet shows what NAT and IPsec do"
    wrong = {v["error"] for v in load("profiles.json")["wrong"]}
    assert wrong == {*layout.PROFILE_ERRORS.values(), None}


def test_names_are_unique_and_sentences_there():
    for file, kinds in {
        "packets.json": ("stamped", "unstamped", "flows", "beacons"),
        "rejected.json": ("packets",),
    }.items():
        vectors = [v for kind in kinds for v in load(file)[kind]]
        names = [v["name"] for v in vectors]
        assert sorted(set(names)) == sorted(names)
        assert all(v["sentence"] for v in vectors)


@pytest.mark.parametrize("file", ["keys.json", "profiles.json", "packets.json", "rejected.json"])
def test_each_file_begins_with_what_it_assumes(file):
    """A foreign reader has the file and the text, not wire_setup.py."""
    text = load(file)
    assert next(iter(text)) == "setup"
    assert text["setup"]["identities"]["alice"]["prefixes"] == list(wire_setup.PREFIXES["alice"])


def test_the_described_statement_is_what_the_fragments_carry():
    given = load("packets.json")["setup"]["stamper"]["statement_of_all_but_erin"]
    alice, bob = (
        foreign.Identity(bytes.fromhex(load("packets.json")["setup"]["identities"][n]["secret"]))
        for n in ("alice", "bob")
    )
    levels = {int(slot): value for slot, value in given["levels"].items()}
    epoch = given["epoch"]
    made = foreign.body(alice.key_id, epoch, given["interval"], given["overall"], levels, given["items"])
    assert made.hex() == given["body_of_alice"]
    pair = foreign.pair_secret(alice, bob.public)
    _, _, *sealing = foreign.direction_keys(pair, alice.public, bob.public, epoch // 3600)
    sealed = foreign.seal(*sealing, made + alice.signer.sign(b"scentd/1 profile" + made))
    flow = load("packets.json")["flows"][0]
    assert b"".join(scent_of(bytes.fromhex(p))[0][13:26] for p in flow["stamped"][:10]) == sealed


@named("keys.json", "identities")
def test_identity(vector):
    one = foreign.Identity(bytes.fromhex(vector["secret"]))
    own = keys.identity(bytes.fromhex(vector["secret"]))
    assert one.text == vector["public"] == str(own.public)
    assert one.key_id.hex() == vector["key_id"] == keys.parse_public(vector["public"]).key_id.hex()


@named("keys.json", "directions")
def test_direction(vector):
    secrets = {v["name"]: bytes.fromhex(v["secret"]) for v in load("keys.json")["identities"]}
    sender, receiver = (foreign.Identity(secrets[vector[end]]) for end in ("sender", "receiver"))
    pair = foreign.pair_secret(receiver, sender.public)
    assert pair.hex() == vector["pair_secret"]
    for wanted in vector["periods"]:
        made = foreign.direction_keys(pair, sender.public, receiver.public, wanted["period"])
        assert [k.hex() for k in made] == [wanted["tag"], wanted["glance"], wanted["seal"], wanted["nonce"]]
        own = keys.direction_keys(pair, keys.Public(sender.public), keys.Public(receiver.public), wanted["period"])
        assert (own.tag, own.glance, own.seal, own.nonce) == made
    for address, wanted in vector["pseudonyms"].items():
        packed = ip_address(address).packed
        assert foreign.pseudonym(pair, sender.public, receiver.public, packed) == wanted
        assert profile.pseudonym(bytes.fromhex(vector["pseudonym_key"]), ip_address(address)) == wanted


@named("profiles.json", "profiles")
def test_profile_by_the_text(vector):
    sender = foreign.Identity(wire_setup.SECRETS[vector["sender"]])
    receiver = foreign.Identity(wire_setup.SECRETS[vector["receiver"]])
    pair, epoch = foreign.pair_secret(sender, receiver.public), vector["epoch"]
    _, glance_key, *sealing = foreign.direction_keys(pair, sender.public, receiver.public, epoch // 3600)
    names = [foreign.pseudonym(pair, sender.public, receiver.public, ip_address(a).packed) for a in vector["affected"]]
    items = vector["items"] + [item for n in names for item in foreign.node_items(n)]
    levels = {int(k): v for k, v in vector["levels"].items()}
    made = foreign.body(sender.key_id, epoch, vector["interval"], vector["overall"], levels, items, vector["lag"])
    assert made.hex() == vector["body"]
    signed = made + sender.signer.sign(b"scentd/1 profile" + made)
    assert signed.hex() == vector["signed"]
    foreign.signed_by(base64.b64decode(sender.text), signed)
    sealed = foreign.seal(*sealing, signed)
    assert foreign.unseal(*sealing, sealed) == signed
    assert sealed.hex() == vector["sealed"] == "".join(vector["fragments"])
    for i, masked in enumerate(vector["glances_masked"]):
        scent = bytes(8) + struct.pack(">IB", epoch, i << 4 | 10) + bytes.fromhex(vector["fragments"][i]) + bytes(8)
        assert vector["glance"] ^ foreign.glance_mask(glance_key, scent) == masked


@named("profiles.json", "profiles")
def test_profile_opens(vector):
    own, epoch = wire_setup.IDENTITIES[vector["sender"]].public, vector["epoch"]
    pair = wire_setup.keys_of(vector["sender"], vector["receiver"], epoch)
    sealed = b"".join(map(bytes.fromhex, vector["fragments"]))
    opened = profile.open_sealed(sealed, pair, own.verifier(), own.key_id, epoch)
    assert isinstance(opened, profile.Body)
    assert (opened.interval, opened.lag, opened.overall, opened.bloom.hex()) == tuple(
        vector[k] for k in ("interval", "lag", "overall", "bloom")
    )
    assert opened.levels == pytest.approx({int(k): v for k, v in vector["levels"].items()}, abs=0.002)
    assert all(bloom.contains(opened.bloom, epoch, item) for item in vector["items"])


@named("profiles.json", "wrong")
def test_wrong_profile(vector):
    own = wire_setup.IDENTITIES[vector["sender"]].public
    pair = wire_setup.keys_of(vector["sender"], vector["receiver"], vector["epoch"])
    opened = profile.open_sealed(bytes.fromhex(vector["sealed"]), pair, own.verifier(), own.key_id, vector["epoch"])
    if vector["error"] is None:
        assert isinstance(opened, profile.Body)
    else:
        assert layout.PROFILE_ERRORS[opened] == vector["error"]


@pytest.mark.parametrize("vector", load("profiles.json")["bloom_positions"])
def test_bloom_positions(vector):
    item, epoch = vector["item"], vector["epoch"]
    assert foreign.bloom_positions(item, epoch) == vector["positions"] == bloom.positions(item, epoch)
    assert len(set(vector["positions"])) == layout.BLOOM_HASHES


@named("packets.json", "stamped")
def test_stamped(vector):
    before, made = bytes.fromhex(vector["before"]), bytes.fromhex(vector["stamped"])
    assert wire_setup.stamper().stamp(before) == made
    assert accepted(made) == bytes.fromhex(vector["stripped"])
    assert carriers.remove(made, ip.parse(made)) == before == bytes.fromhex(vector["removed"])


@named("packets.json", "stamped")
def test_stamped_by_the_text(vector):
    """The foreign implementation makes the same packet, told the 26 bytes that the tag covers."""
    before, made = bytes.fromhex(vector["before"]), bytes.fromhex(vector["stamped"])
    given, found = scent_of(made)
    bound = foreign_key(given, found)
    ports = before[-(len(made) - found.transport_at) :][:4]
    own_tag = foreign.tag(bound, given, found.version, found.protocol, ports, found.source, found.destination)
    scent = given[:26] + own_tag
    assert (foreign.carry4 if found.version == 4 else foreign.carry6)(before, scent) == made


def foreign_key(scent, found):
    sender = next(i for i in map(foreign.Identity, wire_setup.SECRETS.values()) if i.key_id == scent[4:8])
    to_frank = wire_setup.owner(found.destination) == "frank"
    receiver = foreign.Identity(wire_setup.SECRETS["frank" if to_frank else "bob"])
    pair = foreign.pair_secret(sender, receiver.public)
    epoch = int.from_bytes(scent[8:12], "big")
    return foreign.direction_keys(pair, sender.public, receiver.public, epoch // 3600)[0]


@named("packets.json", "stamped")
def test_scapy_names_the_fields_and_builds_the_same_bytes(vector):
    made = bytes.fromhex(vector["stamped"])
    scent, found = scent_of(made)
    dissected = (IP if found.version == 4 else IPv6)(made)
    layer = scapy_layer.IPOption_Scent if found.version == 4 else scapy_layer.IPv6Option_Scent
    [option] = [o for o in all_options(dissected) if isinstance(o, layer)]
    fields = {n: option.getfieldval(n) for n in ("magic", "version", "glance", "epoch", "index", "count")}
    _, version_flags, glance, key_id, epoch, index_count, fragment, given = layout.SCENT.unpack(scent)
    assert fields == {
        "magic": layout.MAGIC, "version": version_flags >> 4, "glance": glance,
        "epoch": epoch, "index": index_count >> 4, "count": index_count & 15,
    }  # fmt: skip
    assert (option.key_id, option.data, option.tag) == (key_id, fragment, given)
    assert int(option.flags) == version_flags & 15
    names = ("magic", "version", "flags", "glance", "key_id", "epoch", "index", "count", "data", "tag")
    assert bytes(layer(**{n: option.getfieldval(n) for n in names}))[2:] == scent


def all_options(packet):
    while packet:
        yield from packet.fields.get("options") or ()
        packet = packet.payload


@named("packets.json", "unstamped")
def test_unstamped(vector):
    reason = wire_setup.stamper().stamp(bytes.fromhex(vector["packet"]))
    assert isinstance(reason, int)
    assert layout.UNSTAMPED[reason] == vector["reason"]


@named("packets.json", "flows")
def test_flow(vector):
    one, before = wire_setup.stamper(), bytes.fromhex(vector["before"])
    made = [one.stamp(before) for _ in vector["stamped"]]
    assert [m.hex() for m in made] == vector["stamped"]
    parts = {scent_of(m)[0][12] >> 4: scent_of(m)[0][13:26] for m in made[:10]}
    out = wire_setup.outgoing()[0]
    assert tuple(parts[i] for i in range(10)) == out.fragments
    assert made[10] == made[11]


@named("packets.json", "beacons")
def test_beacon_is_accepted_and_consumed(vector):
    one = wire_setup.verifier()
    packet = bytes.fromhex(vector["stamped"])
    outcome = one.verify(packet)
    assert (outcome.verdict, outcome.treatment) == (layout.VERDICT_ACCEPTED, "drop")
    assert [e.index for e in one.events] == [7]
    assert ip.parse(packet).ports[2:] == layout.BEACON_PORT.to_bytes(2, "big")
    assert carriers.remove(packet, ip.parse(packet)).hex() == vector["before"]


@named("rejected.json", "packets")
def test_rejected(vector):
    one = wire_setup.verifier(lag=vector.get("lag", 0))
    for earlier in vector["before"]:
        one.tick(earlier["now"])
        one.verify(bytes.fromhex(earlier["packet"]))
    one.tick(vector["now"])
    one.events.clear()
    outcome = one.verify(bytes.fromhex(vector["packet"]))
    if vector["verdict"] == "accepted":
        assert isinstance(outcome, bytes)
    else:
        assert isinstance(outcome, Outcome)
        assert (layout.VERDICTS[outcome.verdict], outcome.treatment) == (vector["verdict"], vector["treatment"])
        assert one.events == []
        assert one.drain_nodes().keys() <= {0} if vector["before"] else one.drain_nodes() == {}


@named("rejected.json", "packets")
def test_a_stamper_does_not_touch_what_has_our_option_or_is_malformed(vector):
    packet = bytes.fromhex(vector["packet"])
    found = ip.parse(packet)
    reason = wire_setup.stamper().stamp(packet)
    if found.malformed:
        assert reason == layout.UNSTAMPED_MALFORMED
    elif found.scent_at:
        assert reason == layout.UNSTAMPED_ALREADY
    elif isinstance(reason, bytes):
        assert carriers.remove(reason, ip.parse(reason)) == packet
    else:
        assert layout.UNSTAMPED[reason] in ("no-room", "headers", "ipv6-fragment")


def test_the_packet_path_does_not_import_scapy():
    code = (
        "import sys; import scentd.roles.paths, scentd.datapath.queue.worker, scentd.core.profile.issue, scentd.kinds;"
        "sys.exit('scapy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_empty_stamper_and_verifier_know_nobody():
    for vector in load("packets.json")["stamped"]:
        assert Stamper().stamp(bytes.fromhex(vector["before"])) == layout.UNSTAMPED_NOT_A_PEER
