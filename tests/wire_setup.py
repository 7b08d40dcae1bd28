"""Who is who in the vectors and in the tests of the pure core.

alice 192.0.2.0/24    2001:db8:a::/64   sends to bob and to frank
carol 203.0.113.0/24  2001:db8:c::/64   sends to bob from behind NAT: bind = "sender"
erin  10.5.0.0/24                       a network of the same stamper that has signed nothing
bob   198.51.100.0/24 2001:db8:b::/64   receives; the path to 198.51.100.192/26 carries 1200 bytes
frank                 2001:db8:f::/64   receives IPv6 fragments before they are defragmented
"""

from ipaddress import ip_address, ip_network

from msgspec import to_builtins
from msgspec.structs import replace

from scentd.core.packet.stamp import Stamper
from scentd.core.packet.verify import Verifier
from scentd.core.profile.issue import IssuedPair, Issuer, metric_slots
from scentd.core.tables import EpochRow, Incoming, IncomingKeys, StampPair, StampTable, Treatments, VerifyTable
from scentd.model import Statement
from scentd.wire import keys, layout, profile

NAMES = ("alice", "bob", "carol", "erin", "frank")
SECRETS = {name: bytes((i + 1,)) * 32 for i, name in enumerate(NAMES)}
IDENTITIES = {name: keys.identity(secret) for name, secret in SECRETS.items()}
DIRECTIONS = (("alice", "bob"), ("bob", "alice"), ("carol", "bob"), ("alice", "frank"))
PAIRS = {("alice", "bob"): 0, ("carol", "bob"): 1, ("alice", "frank"): 2, ("erin", "bob"): 3}
PREFIXES = {
    "alice": ("192.0.2.0/24", "2001:db8:a::/64"),
    "bob": ("198.51.100.0/24", "2001:db8:b::/64"),
    "carol": ("203.0.113.0/24", "2001:db8:c::/64"),
    "erin": ("10.5.0.0/24",),
    "frank": ("2001:db8:f::/64",),
}
EPOCH = 1_800_000_005
PERIOD = EPOCH // layout.PERIOD  # begins five seconds before
BEFORE = EPOCH - 6  # in the period before
NOW = EPOCH + 1.0
STATEMENT = Statement(5, 0.52, {"cpu": 0.9, "threat": 0.2}, frozenset(("region=eu-west",)))
ALICE_TREATMENTS = Treatments("drop", "pass", "pass", pair=0)
CAROL_TREATMENTS = Treatments("reject", "drop", "pass", pair=1)
NETWORKS, PEERS = ("alice", "carol", "erin"), ("bob", "frank")
LIMITS = (
    ("198.51.100.0/24", 1500),
    ("198.51.100.192/26", 1200),
    ("2001:db8:b::/64", 1500),
    ("2001:db8:f::/64", 1500),
)

STAMP_TABLE = StampTable(
    networks=tuple((p, i) for i, n in enumerate(NETWORKS) for p in PREFIXES[n]),
    peers=tuple((p, i) for i, n in enumerate(PEERS) for p in PREFIXES[n]),
    pairs=(
        StampPair(0, 0, 0),
        StampPair(1, 1, 0, sender_bound=True),
        StampPair(2, 0, 1, ipv6_fragments=True),
        StampPair(3, 2, 0),
    ),
    limits=LIMITS,
)
NARROW_STAMP_TABLE = replace(STAMP_TABLE, limits=(("198.51.100.0/24", 576), ("2001:db8:b::/64", 1280)))


def pair_secret(one, other):
    return keys.pair_secret(IDENTITIES[one], IDENTITIES[other].public)


def keys_of(sender, receiver, epoch):
    one, other = IDENTITIES[sender].public, IDENTITIES[receiver].public
    return keys.direction_keys(pair_secret(sender, receiver), one, other, epoch // layout.PERIOD)


def pseudonym_key_of(sender, receiver):
    one, other = IDENTITIES[sender].public, IDENTITIES[receiver].public
    return keys.pseudonym_key(pair_secret(sender, receiver), one, other)


def outgoing(epoch=EPOCH, statement=STATEMENT):
    """What the stampers of alice and carol send in an epoch, by pair; erin has nothing."""
    made = {}
    for (sender, receiver), number in PAIRS.items():
        if sender != "erin":
            issued = IssuedPair(sender, receiver, IDENTITIES[sender], IDENTITIES[receiver].public)
            [made[number]] = Issuer(IDENTITIES[sender], [issued], metric_slots({})).issue(statement, epoch)
    return made


def stamper(epoch=EPOCH, now=NOW, table=STAMP_TABLE):
    made = Stamper()
    made.configure(table)
    made.tick(now)
    made.update(outgoing(epoch))
    return made


def incoming(sender, receiver):
    periods = range(PERIOD - 1, PERIOD + 2)
    made = {p: keys_of(sender, receiver, p * layout.PERIOD) for p in periods}
    number = PAIRS[sender, receiver]
    return Incoming(
        pair=number,
        network=PREFIXES[receiver],
        peer=PREFIXES[sender],
        slot=number,
        keys=(
            IncomingKeys(
                IDENTITIES[sender].public.key_id + IDENTITIES[receiver].public.key_id,
                {p: k.tag for p, k in made.items()},
                {p: k.glance for p, k in made.items()},
            ),
        ),
        sender_bound=sender == "carol",
    )


VERIFY_TABLE = VerifyTable(
    incoming=(incoming("alice", "bob"), incoming("carol", "bob"), incoming("alice", "frank")),
    treatments=(
        *((p, ALICE_TREATMENTS) for p in PREFIXES["alice"]),
        *((p, CAROL_TREATMENTS) for p in PREFIXES["carol"]),
    ),
)


def verifier(now=NOW, epochs=None, table=VERIFY_TABLE, make_room=None, lag=0):
    """The verifier of bob and frank in one, with an empty history unless one is given."""
    nothing = [*EpochRow(lag=lag)] * 4
    made = Verifier(nothing if epochs is None else epochs, make_room=make_room)
    made.configure(table)
    made.tick(now)
    return made


def owner(address):
    """Whose prefix a packed address is in, or None."""
    for name, prefixes in PREFIXES.items():
        if any(ip_address(address) in ip_network(p) for p in prefixes):
            return name
    return None


def described(stamping, receiving):
    """All that a vector file assumes, for the head of the file."""
    made = {"identities": {n: {"secret": s.hex(), "prefixes": PREFIXES[n]} for n, s in SECRETS.items()}}
    if stamping or receiving:
        made["pairs"] = [_described_pair(p, *ends) for ends, p in PAIRS.items()]
    if stamping:
        body = profile.unseal(keys_of("alice", "bob", EPOCH), b"".join(outgoing()[0].fragments))
        made["stamper"] = {
            "networks": NETWORKS,
            "peers": PEERS,
            "path_mtu": dict(LIMITS),
            "now": NOW,
            "statement_of_all_but_erin": {
                "epoch": EPOCH,
                "interval": STATEMENT.interval,
                "overall": STATEMENT.overall,
                "levels": {str(metric_slots({})[name]): value for name, value in STATEMENT.levels.items()},
                "items": sorted(STATEMENT.items),
                "body_of_alice": body[: layout.BODY_LEN].hex(),
            },
            "each_vector": "a stamper that has sent nothing in this epoch: its first packet has fragment 0",
        }
    if receiving:
        made["verifier"] = {
            "receives_for": PEERS,
            "from": ["alice", "carol"],
            "now": NOW,
            "max_age": VERIFY_TABLE.max_age,
            "max_future": VERIFY_TABLE.max_future,
            "grace": VERIFY_TABLE.grace,
            "treatments": {
                "alice": described_treatments(ALICE_TREATMENTS),
                "carol": described_treatments(CAROL_TREATMENTS),
                "others": described_treatments(VERIFY_TABLE.default),
            },
            "each_vector": "a verifier that has seen nothing but the vector's own packets before; where the vector has "
            "a lag, the sender's newest verified profile says so",
        }
    return made


def described_treatments(treatments):
    """The pair is for counting, and no other implementation's concern."""
    return {name: value for name, value in to_builtins(treatments).items() if name != "pair"}


def _described_pair(number, sender, receiver):
    pair = STAMP_TABLE.pairs[number]
    return {
        "sender": sender,
        "receiver": receiver,
        "bind": "sender" if pair.sender_bound else "flow",
        "stamp_ipv6_fragments": pair.ipv6_fragments,
        "has_profile": sender != "erin",
    }
