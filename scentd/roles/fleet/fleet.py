"""The fleet as a role: what the roles of this host and those of other hosts say to one another, over NATS.

collecting: Samples of this host -> profilers; those of others -> the profiler here
signing:    IssuedEpoch of the profiler here -> stampers, under a lease
stamping:   IssuedEpoch of a profiler elsewhere -> the stamper here
verifying:  Views of the verifier here -> allocators; those of others -> the allocator here
allocating: DesiredAmounts of the allocator here -> hosts that provide, under a lease; Observed, Applied of those -> it
providing:  DesiredAmounts of an allocator elsewhere -> the providers here; their Observed, Applied -> it
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections import Counter

from scentd.bus.local import LocalBus
from scentd.bus.nats import BUCKET, DESIRED_STREAM, STREAM, VIEWS_STREAM, NatsBus, NatsError, Take
from scentd.config.bus import Bus
from scentd.config.sections import Config
from scentd.control.status import BusStatus, LeaseStatus, PeerStatus
from scentd.core.fleet.lease import Lease
from scentd.core.pairs import Pairs
from scentd.model import Applied, Barred, DesiredAmounts, IssuedEpoch, Observed, Samples, View, Views
from scentd.roles.allocator import AllocatorRole
from scentd.roles.fleet.allocating import INTERVAL, AllocatorTwins, DesiredSender, ProvidedTaker
from scentd.roles.fleet.collecting import SampleSender, SampleTaker
from scentd.roles.fleet.lease_keeper import Holder, LeaseKeeper
from scentd.roles.fleet.post import Post
from scentd.roles.fleet.providing import DesiredTaker, ProvidedSender
from scentd.roles.fleet.signing import OutgoingSender, TwinWatch
from scentd.roles.fleet.stamping import OutgoingTaker
from scentd.roles.fleet.verifying import ReportSender, ReportTaker
from scentd.roles.profiler import ProfilerRole
from scentd.system.clock import steady
from scentd.wire import keys

log = logging.getLogger(__name__)


class FleetRole:
    """Bridges this host's bus and the others'. Made only where [bus] is in use."""

    def __init__(
        self,
        settings: Bus,
        identity: keys.Identity,
        bus: LocalBus,
        profiler: ProfilerRole,
        allocator: AllocatorRole,
    ) -> None:
        """Raises HostError."""
        self.counters: Counter[str] = Counter()
        self._bus = bus
        self._settings = settings
        self._profiler = profiler
        self._post = Post(settings.name, identity, self.counters)
        self._nats = NatsBus(settings, self.counters)
        instance, key = f"{socket.gethostname()}-{secrets.token_hex(4)}", settings.name.replace(".", "/")
        self._lease = Lease(instance, 1.0)
        issuer = Holder("profiler", "issues nothing", key, (STREAM, VIEWS_STREAM))
        self._keeper = LeaseKeeper(self._lease, issuer, self._nats, profiler.hurry)
        self._sample_sender = SampleSender(self._post, self._nats)
        self._sample_taker = SampleTaker(self._post, self._publish)
        self._outgoing_sender = OutgoingSender(self._post, self._nats, self._lease)
        self._outgoing_taker = OutgoingTaker(self._post, self._publish)
        self._twins = TwinWatch(self._post, self._lease, profiler.raise_epoch, self._on_yielded)
        self._report_sender = ReportSender(self._post, self._nats)
        self._report_taker = ReportTaker(self._post, self._publish)
        self._allocates = settings.has_providers
        self._allocation_lease = Lease(instance, INTERVAL)
        decider = Holder("allocator", "decides nothing", f"allocate/{key}", (DESIRED_STREAM,))
        self._allocation_keeper = LeaseKeeper(self._allocation_lease, decider, self._nats, allocator.take_over)
        self._desired_sender = DesiredSender(self._post, self._nats, self._allocation_lease, lambda: allocator.amounts)
        self._allocators = AllocatorTwins(self._post, self._allocation_lease, self._on_allocator_yielded)
        self._provided_taker = ProvidedTaker(self._post, self._publish, self._allocation_lease, self._allocators)
        self._desired_taker = DesiredTaker(self._post, self._publish)
        self._provided_sender = ProvidedSender(self._post, self._nats, self._desired_taker.state)
        allocator.gate = self._may_decide
        self._leased: frozenset[str] = frozenset()  # networks that are signed here under the lease
        self._taking = False  # what is published now came over the bus
        bus.subscribe(Samples, self._on_samples)
        bus.subscribe(IssuedEpoch, self._on_epoch)
        bus.subscribe(Views, self._on_views)
        bus.subscribe(Barred, self._report_sender.take_barred)
        bus.subscribe(DesiredAmounts, self._desired_sender.take)
        bus.subscribe(Observed, self._on_observed)
        bus.subscribe(Applied, self._on_applied)

    def given(self, config: Config) -> dict[str, dict[str, float]]:
        """By resource and peer what an earlier run was to give, because an allocator elsewhere had decided so."""
        self._desired_taker.configure(config)
        return self._desired_taker.state.given()

    async def configure(self, config: Config, pairs: Pairs) -> None:
        """Serve this configuration; of [bus] only the hosts change in a running daemon."""
        self._post.configure(config.bus)
        self._sample_sender.configure()
        self._sample_taker.configure(config)
        self._outgoing_taker.configure(config, pairs.revoked)
        self._outgoing_sender.configure(pairs)
        self._report_sender.configure(config)
        self._report_taker.configure(config, pairs.revoked)
        self._desired_sender.configure(config)
        self._provided_taker.configure(config)
        self._desired_taker.configure(config)
        self._provided_sender.configure(config)
        self._allocates = config.bus.has_providers
        leased = [network for network in config.network if network.signs and config.bus.shares(network.name)]
        self._leased = frozenset(network.name for network in leased)
        self._lease.interval = min((network.interval for network in leased), default=1.0)
        self._profiler.gate = self._may_issue
        takers: dict[str, Take] = {}
        if self._outgoing_taker.needed:
            takers[self._outgoing_taker.subject] = self._outgoing_taker.take
        if config.bus.allocates:
            takers[self._report_taker.subject] = self._report_taker.take
        if self._leased:
            takers |= {self._sample_taker.subject: self._sample_taker.take, self._twins.subject: self._twins.take}
            self._keeper.begin()
        if self._allocates:
            takers |= {self._provided_taker.subject: self._provided_taker.take}
            takers |= {self._allocators.subject: self._allocators.take}
            self._allocation_keeper.begin()
            self._desired_sender.start()
        if self._desired_taker.needed:
            takers[self._desired_taker.subject] = self._desired_taker.take
            self._desired_taker.start()
        await self._nats.listen(takers)

    def start(self) -> None:
        self._nats.start(self._on_connected)

    async def stop(self) -> None:
        self._sample_sender.stop()
        self._outgoing_sender.stop()
        self._report_sender.stop()
        self._provided_sender.stop()
        await self._desired_sender.stop()
        await self._desired_taker.stop()
        await self._keeper.stop()
        await self._allocation_keeper.stop()
        await self._nats.stop()

    def view_of(self, peer: str, now: float) -> View | None:
        """What other hosts' verifiers know of a peer; None if they do not, or say nothing to this host."""
        return self._report_taker.view_of(peer, now)

    def _may_issue(self, network: str) -> bool:
        return network not in self._leased or self._lease.may_act(steady())

    def why_not(self, resource: str, peer: str) -> str:
        """Why another host does not give the peer what is wanted of a resource that it has."""
        return self._provided_taker.why_not(resource, peer)

    def _may_decide(self) -> bool:
        return not self._allocates or self._allocation_lease.may_act(steady())

    def peers(self, now: float) -> list[PeerStatus]:
        """Those of whom other hosts' verifiers tell this one's allocator."""
        return self._report_taker.status(now)

    def status(self) -> BusStatus:
        heard = {"verify", "provide"} | ({"collect"} if self._leased else {"sign"})
        heard |= {"allocate"} if self._desired_taker.needed else set()
        return BusStatus(
            name=self._settings.name,
            connected=self._nats.connected,
            server=self._nats.server,
            why_not=self._nats.why_not,
            lease=lease_status(self._lease) if self._leased else None,
            allocation_lease=lease_status(self._allocation_lease) if self._allocates else None,
            providing=self._desired_taker.status(),
            counters=dict(self.counters),
            heard=self._post.heard(heard),
        )

    async def _on_connected(self) -> None:
        self._keeper.renew_connection()
        self._allocation_keeper.renew_connection()
        try:
            await self._outgoing_taker.catch_up(self._nats)
            await self._report_taker.catch_up(self._nats)
            await self._desired_taker.catch_up(self._nats)
        except (NatsError, OSError, TimeoutError) as error:
            log.info("bus: what was sent before is not known: %s", str(error) or type(error).__name__)
        except Exception:  # what is kept there must not end the connection
            self.counters["failed"] += 1
            log.exception("bus: what was sent before could not be taken")

    def _on_yielded(self, instance: str) -> None:
        log.error(
            "bus: %s issues under the name %s, too, and does not share our lease; this one yields. Profilers of one "
            "name need one NATS account and one bucket %s",
            instance,
            self._post.name,
            BUCKET,
        )

    def _on_allocator_yielded(self, instance: str) -> None:
        log.error(
            "bus: %s allocates under the name %s, too, and does not share our lease; this one yields. Allocators of "
            "one name need one NATS account and one bucket %s",
            instance,
            self._post.name,
            BUCKET,
        )

    def _on_observed(self, observed: Observed) -> None:
        if not self._taking:
            self._provided_sender.take_observed(observed)

    def _on_applied(self, applied: Applied) -> None:
        if not self._taking:
            self._provided_sender.take_applied(applied)

    def _on_views(self, seen: Views) -> None:
        if not self._taking:
            self._report_sender.take(seen)

    def _publish(self, value: object) -> None:
        """Publish what came from another host: it does not go back."""
        self._taking = True
        try:
            self._bus.publish(value)
        finally:
            self._taking = False

    def _on_samples(self, samples: Samples) -> None:
        if not self._taking:
            self._sample_sender.take(samples)

    def _on_epoch(self, issued: IssuedEpoch) -> None:
        if not self._taking:
            self._outgoing_sender.take(issued)


def lease_status(lease: Lease) -> LeaseStatus:
    holder = lease.record.instance if lease.record is not None else ""
    return LeaseStatus(active=lease.may_act(steady()), instance=lease.instance, holder=holder, term=lease.term)
