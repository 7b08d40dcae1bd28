"""Both ends of wire_setup's first pair change their key: each has a second one."""

from __future__ import annotations

import wire_setup
from msgspec.structs import replace
from packet_vectors import ip4, ip6, tcp

from scentd.core.packet.stamp import Stamper
from scentd.core.pairs import PairSecret, incoming_keys
from scentd.core.profile.issue import IssuedPair, Issuer, metric_slots
from scentd.core.tables import VerifyTable
from scentd.model import Outgoing
from scentd.wire import keys

ALICE = (wire_setup.IDENTITIES["alice"], keys.identity(b"\xa2" * 32))
BOB = (wire_setup.IDENTITIES["bob"], keys.identity(b"\xb2" * 32))
PAIR = wire_setup.PAIRS["alice", "bob"]
ENDS = [(a, b) for a in (0, 1) for b in (0, 1)]  # which of her keys signs, for which of his


def table(alice: int = 2, bob: int = 2) -> VerifyTable:
    """Bob's, if he knows so many keys of hers and has so many of his own."""
    secrets = [PairSecret(own, sender.public) for sender in ALICE[:alice] for own in BOB[:bob]]
    found = tuple(incoming_keys(secret, wire_setup.PERIOD) for secret in secrets)
    return VerifyTable(
        incoming=(replace(wire_setup.incoming("alice", "bob"), keys=found), *wire_setup.VERIFY_TABLE.incoming[1:]),
        treatments=wire_setup.VERIFY_TABLE.treatments,
    )


def key_ids(alice: int, bob: int) -> bytes:
    return ALICE[alice].public.key_id + BOB[bob].public.key_id


def outgoing(alice: int, bob: int, epoch: int) -> Outgoing:
    pair = IssuedPair("alice", "bob", ALICE[alice], BOB[bob].public)
    [made] = Issuer(ALICE[alice], [pair], metric_slots({})).issue(wire_setup.STATEMENT, epoch)
    return made


def packets(version: int, alice: int, bob: int, epoch: int, count: int = 10) -> list[bytes]:
    """Packets with the fragments of an epoch."""
    stamper = Stamper()
    stamper.configure(wire_setup.STAMP_TABLE)
    stamper.tick(epoch)
    stamper.update({PAIR: outgoing(alice, bob, epoch)})
    bare = bytes((ip4 if version == 4 else ip6)() / tcp())
    made = [stamper.stamp(bare) for _ in range(count)]
    assert all(isinstance(packet, bytes) for packet in made)
    return made
