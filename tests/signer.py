"""A running profiler of one network, and what a test says to it as its collectors."""

import asyncio
import time

from scentd.bus.local import LocalBus
from scentd.config.sections import Config, Network, Peer
from scentd.core.pairs import Pairs
from scentd.model import IssuedEpoch, Notice, Sample, Samples
from scentd.roles.profiler import ProfilerRole
from scentd.state.epochs import Epochs, prepare
from scentd.state.slots import issued_slot
from scentd.wire import keys

OWN, OTHER = keys.identity(b"\1" * 32), keys.identity(b"\2" * 32)
INTERVAL = 0.4  # seconds: the smallest that a configuration may have is longer, and tests do not wait for it


class Signer:
    """A running profiler of one network; `issued` are its epochs and when they came (monotonic)."""

    def __init__(self, path, **network) -> None:
        self.bus = LocalBus()
        self.issued: list[tuple[float, IssuedEpoch]] = []
        self.statements: list[dict] = []
        self.bus.subscribe(IssuedEpoch, lambda issued: self.issued.append((time.monotonic(), issued)))
        self.bus.subscribe(Notice, lambda notice: self.statements.append(notice.fields))
        self.role = ProfilerRole(self.bus)
        self.path = path
        self.network = Network(name="n", key_file="k", sign=True, **{"interval": INTERVAL, **network})

    def epochs(self) -> Epochs:
        return prepare(self.path / "epochs", [issued_slot("n")])

    async def __aenter__(self) -> "Signer":
        self.epoch_file = self.epochs()
        await self.sign_by(OWN)
        return self

    async def sign_by(self, identity: keys.Identity) -> None:
        """As a reload does."""
        config = Config(network=[self.network], peer=[Peer("p", str(OTHER.public), ["192.0.2.1"])])
        await self.role.replace(config, Pairs(config, {"n": (identity,)}, {("n", "p"): 0}), self.epoch_file)

    async def __aexit__(self, *_: object) -> None:
        await self.role.stop()
        self.epoch_file.close()

    def say(self, collector: str, value: float, ago: float = 0.0, **more) -> None:
        at = time.time() - ago
        self.bus.publish(Samples("n", collector, at, (Sample("cpu", value, at, node=collector),), **more))

    def status(self):
        return self.role.status(self.network, ("", ""), {})

    async def next(self, seconds: float = 5.0) -> dict:
        """The statement of the next epoch."""
        number, end = len(self.issued), time.monotonic() + seconds
        while len(self.issued) == number:
            assert time.monotonic() < end, "no epoch"
            await asyncio.sleep(0.005)
        return self.statements[-1]


def run(path, story, **network) -> None:
    async def whole() -> None:
        async with Signer(path, **network) as signer:
            await story(signer)

    asyncio.run(whole())
