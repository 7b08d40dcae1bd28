"""Collector, profiler and stamper as three hosts would run them, in one process: they share nothing but values.

    collects (source)  --Samples-->  signs (key)  --IssuedEpoch-->  stamps  ==packets==>  peer (its own key)

Each has a configuration, a bus, and numbers of pairs of its own. A value leaves one bus as bytes and comes to the
other as a new object, in the place of the bus that will carry them across hosts. The packet path is a stand-in: the
pure stamper without queues (tests/netns runs the real one).
"""

import asyncio
import time

import msgspec
import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from scentd.bus.local import LocalBus
from scentd.core.packet.stamp import Stamper
from scentd.core.packet.verify import Verifier
from scentd.core.pairs import Pairs
from scentd.core.tables import EPOCH_ROW
from scentd.kinds import config_from
from scentd.model import IssuedEpoch, Outgoing, Samples, Views
from scentd.roles.collector import CollectorRole
from scentd.roles.profiler import ProfilerRole
from scentd.roles.stamper import StamperRole
from scentd.roles.verifier import VerifierRole
from scentd.state.epochs import prepare
from scentd.state.issued import IssuedEpochs
from scentd.state.slots import issued_slot
from scentd.wire import ip, keys, layout

TENANT, OTHER = keys.identity(b"\1" * 32), keys.identity(b"\2" * 32)
OURS, THEIRS = "192.0.2.1", "198.51.100.1"
PACKET = bytes(IP(src=OURS, dst=THEIRS) / UDP(sport=1000, dport=2000) / Raw(b"hello"))


def host(*networks: dict, peers: tuple[str, ...] = ("other",)):
    """The configuration of one of the three: each knows the peers it needs, in an order of its own."""
    known = {
        "other": {"name": "other", "public_key": str(OTHER.public), "addresses": [THEIRS]},
        "third": {"name": "third", "public_key": str(keys.identity(b"\3" * 32).public), "addresses": ["203.0.113.1"]},
    }
    return config_from({"network": list(networks), "peer": [known[name] for name in peers]})


def tenant(**more):
    return {"name": "tenant", "addresses": [OURS], "interval": "1s", **more}


COLLECTS = host(tenant(source=[{"kind": "memory"}, {"kind": "cpu", "role": "web"}]))
SIGNS = host(tenant(key_file="tenant.key", sign=True, stamp=False))
STAMPS = host({"name": "first", "addresses": ["10.0.0.1"], "stamp": True}, tenant(stamp=True), peers=("third", "other"))
PEER = config_from(
    {
        "network": [{"name": "other", "key_file": "other.key", "addresses": [THEIRS]}],
        "peer": [{"name": "tenant", "public_key": str(TENANT.public), "addresses": [OURS]}],
    }
)


def carry(value_type: type, start: LocalBus, end: LocalBus, passed: list[bytes]) -> None:
    """What a bus across hosts does: each value of the type becomes bytes, and a new value at the other end."""

    def over(value) -> None:
        passed.append(msgspec.msgpack.encode(value))
        end.publish(msgspec.msgpack.decode(passed[-1], type=value_type))

    start.subscribe(value_type, over)


class StampedHere:
    """In the place of roles.paths.Paths."""

    def __init__(self, pairs: Pairs) -> None:
        self.stamper = Stamper()
        self.stamper.configure(pairs.stamp_table([(f"{THEIRS}/32", 1500)]))
        self.stamper.tick(time.time())
        self.sending: dict[int, Outgoing] = {}

    def publish_epochs(self, outgoing: dict[int, Outgoing]) -> None:
        self.sending |= outgoing
        self.stamper.update(outgoing)

    def outgoing(self, pair: int) -> Outgoing | None:
        return self.sending.get(pair)

    def sent(self, pair: int, epoch: int) -> int:
        return (1 << layout.FRAGMENTS) - 1  # all of it: beacons are not tried here


def numbered(config, first: int) -> dict[tuple[str, str], int]:
    names = [(network.name, peer.name) for network in config.network for peer in config.peer]
    return {name: first + i for i, name in enumerate(names)}


class Peer:
    """The other end: a verifier and the role that opens profiles."""

    def __init__(self) -> None:
        self.pairs = Pairs(PEER, {"other": (OTHER,)}, {("other", "tenant"): 0})
        self.views: list[Views] = []
        bus = LocalBus()
        bus.subscribe(Views, self.views.append)
        self.role = VerifierRole(bus)
        self.role.configure(self.pairs)
        self.verifier = Verifier([0] * EPOCH_ROW)
        self.verifier.configure(self.pairs.verify_table(keys.period_of(int(time.time()))))

    def take(self, packet: bytes) -> bytes:
        self.verifier.tick(time.time())
        bare = self.verifier.verify(packet)
        assert isinstance(bare, bytes), bare
        self.role.take_fragments(self.verifier.events)
        self.verifier.events.clear()
        return bare


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """(bytes of Samples, bytes of IssuedEpochs, what stamped, the peer), after an epoch went the whole way."""

    async def run():
        here, signing, there = LocalBus(), LocalBus(), LocalBus()
        samples: list[bytes] = []
        epochs: list[bytes] = []
        carry(Samples, here, signing, samples)
        carry(IssuedEpoch, signing, there, epochs)
        collector, profiler = CollectorRole(here, "host one"), ProfilerRole(signing)
        pairs = Pairs(STAMPS, {}, numbered(STAMPS, 7))
        path = StampedHere(pairs)
        stamper = StamperRole(there, path, 0, IssuedEpochs(tmp_path_factory.mktemp("issued")))
        stamper.configure(pairs)
        file = prepare(tmp_path_factory.mktemp("apart") / "epochs", [issued_slot("tenant")])
        await profiler.replace(SIGNS, Pairs(SIGNS, {"tenant": (TENANT,)}, numbered(SIGNS, 0)), file)
        await collector.replace(COLLECTS)
        end = time.monotonic() + 15
        while not any(b"cpu" in s for s in samples) or not path.sending:
            assert time.monotonic() < end, "no epoch came to the stamper"
            await asyncio.sleep(0.02)
        await collector.stop()
        await asyncio.sleep(1.5)  # an epoch of the last samples
        await profiler.stop()
        stamper.stop()
        return samples, epochs, path, Peer()

    return asyncio.run(run())


def test_an_epoch_goes_from_a_source_to_a_peer_over_three_hosts(passed):
    _, epochs, path, peer = passed
    for _ in range(layout.FRAGMENTS):
        path.stamper.forget_flows()
        stamped = path.stamper.stamp(PACKET)
        assert isinstance(stamped, bytes), layout.UNSTAMPED[stamped]
        bare = peer.take(stamped)
        assert not ip.parse(bare).scent_at
        assert bare.endswith(b"hello")
    [view] = peer.views[-1].views
    assert (view.peer, set(view.profile.levels)) == ("tenant", {"cpu", "memory"})
    assert view.profile.epoch == msgspec.msgpack.decode(epochs[-1], type=IssuedEpoch).epoch


def test_what_passes_names_networks_and_peers_and_holds_no_private_key(passed):
    samples, epochs, path, _ = passed
    read = msgspec.msgpack.decode(samples[-1], type=Samples)
    assert (read.network, read.collector) == ("tenant", "host one")
    [outgoing] = msgspec.msgpack.decode(epochs[-1], type=IssuedEpoch).outgoing
    assert (outgoing.network, outgoing.peer) == ("tenant", "other")
    secrets = (b"\1" * 32, keys.pair_secret(TENANT, OTHER.public))
    assert not any(secret in text for text in samples + epochs for secret in secrets)
    # The stamping host numbers its pairs itself: of its two networks and two peers this is the last.
    assert list(path.sending) == [10]


def test_each_configuration_says_one_thing():
    told = [(bool(n.source), n.signs, n.stamps) for n in (c.network[-1] for c in (COLLECTS, SIGNS, STAMPS))]
    assert told == [(True, False, False), (False, True, False), (False, False, True)]
    assert [n.key_file for c in (COLLECTS, STAMPS) for n in c.network] == ["", "", ""]
