"""The bus between hosts: NATS, an existing engine. Delivers bytes by subject; what is in them is sealed end to end.

    scentd.samples.PROFILER.HOST            a collector's readings
    scentd.outgoing.STAMPER.GROUP           a profiler's epochs; the last of each is kept, in the stream SCENTD
    scentd.outgoing.STAMPER.GROUP.alarm     those that did not wait for the others of their group
    scentd.views.ALLOCATOR.VERIFIER.GROUP   what a verifier has verified; the last of each is kept, in SCENTD_VIEWS
    scentd.desired.HOST.ALLOCATOR.RESOURCE.GROUP
                                            what a host shall give; the last of each is kept, in SCENTD_DESIRED
    scentd.provided.ALLOCATOR.HOST          what a host gives, and what it was told

and a key-value bucket SCENTD with the leases of profilers, and of allocators for which other hosts provide. A dot in a
host's name is a slash in a subject.
Nothing waits for a broker: what cannot be sent now is not sent, because it would be old later.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, StorageType, StreamConfig
from nats.js.errors import NotFoundError
from nats.js.kv import KeyValue

from scentd.config.bus import Bus
from scentd.core.fleet.seal import MESSAGE_MAX
from scentd.errors import HostError

log = logging.getLogger(__name__)

STREAM = BUCKET = "SCENTD"
VIEWS_STREAM = "SCENTD_VIEWS"  # apart: who fills the one takes nothing from the other
DESIRED_STREAM = "SCENTD_DESIRED"
KEPT_BYTES = 64 * 1024 * 1024  # of each; `max_memory_store` of the servers has to hold all three
OUTGOING = "scentd.outgoing"
SAMPLES = "scentd.samples"
VIEWS = "scentd.views"
DESIRED = "scentd.desired"
PROVIDED = "scentd.provided"
KEPT_OF = {STREAM: OUTGOING, VIEWS_STREAM: VIEWS, DESIRED_STREAM: DESIRED}  # by stream, what it keeps
KEPT_SECONDS = 60  # for which a profile may be stamped, at most; what a host shall give is said again before
RETRY = 0.5  # seconds between two attempts to connect
PING = 2  # seconds; a server that does not answer two of them is gone

Take = Callable[[bytes], object]


def subject(kind: str, *tokens: str) -> str:
    """`kind`: OUTGOING, SAMPLES ...; `tokens`: names, or a wildcard."""
    return ".".join((kind, *(token.replace(".", "/") for token in tokens)))


class NatsBus:
    """This host's connection. It comes back by itself; `connected` says whether it is there."""

    def __init__(self, settings: Bus, counters: Counter[str]) -> None:
        """`counters` has what was sent and what was not, by name. Raises HostError."""
        self._settings = settings
        self._counters = counters
        self._tls = tls_context(settings)
        self._client = Client()
        self._jetstream: JetStreamContext | None = None
        self._told = ""  # the last failure that was logged
        self._task: asyncio.Task | None = None
        self._takers: Mapping[str, Take] = {}
        self._subscribed: dict[str, Subscription] = {}
        self._sending: set[asyncio.Task] = set()

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def server(self) -> str:
        url = self._client.connected_url
        return url.netloc if url is not None else ""

    @property
    def why_not(self) -> str:
        return "" if self.connected else self._told or "not connected yet"

    def start(self, on_connected: Callable[[], Awaitable[None]]) -> None:
        """Connect in the background. `on_connected` runs whenever a connection is there."""
        self._task = asyncio.create_task(self._connect(on_connected))

    async def listen(self, takers: Mapping[str, Take]) -> None:
        """From now on these take the messages of these subjects, and nobody those of others."""
        self._takers = takers
        if self._jetstream is None:
            return  # the connection will begin with it
        for name in self._subscribed.keys() - takers.keys():
            await self._subscribed.pop(name).unsubscribe()
        for name in takers.keys() - self._subscribed.keys():
            self._subscribed[name] = await self._client.subscribe(name, cb=self._taking(takers[name]))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._sending, return_exceptions=True)
        await self._close()

    async def _close(self) -> None:
        if self._client.is_connected or self._client.is_reconnecting:  # one that never was has nothing to close
            await self._client.close()

    def send(self, subject: str, data: bytes) -> bool:
        """Send without waiting. False: there is no broker now, and nothing is kept."""
        if not self.connected or len(data) > MESSAGE_MAX:
            self._counters["too_long" if self.connected else "no_broker"] += 1
            return False
        task = asyncio.create_task(self._publish(subject, data))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return True

    async def last(self, subject: str) -> bytes | None:
        """The last message of a subject of the stream; None if there is none. Raises OSError, NatsError."""
        jetstream = self._connected_jetstream()
        try:
            stream = next(name for name, kind in KEPT_OF.items() if subject.startswith(kind))
            return (await jetstream.get_last_msg(stream, subject, direct=True)).data
        except NotFoundError:
            return None

    async def make_streams(self, names: Iterable[str] = KEPT_OF) -> None:
        """Have these streams that keep the last of each subject. Raises OSError, NatsError."""
        jetstream = self._connected_jetstream()
        for name in names:
            wanted = StreamConfig(
                name=name,
                subjects=[f"{KEPT_OF[name]}.>"],
                max_msgs_per_subject=1,
                max_age=KEPT_SECONDS,
                max_bytes=KEPT_BYTES,
                discard=DiscardPolicy.OLD,
                storage=StorageType.MEMORY,
                allow_direct=True,
                num_replicas=self._settings.replicas,
            )
            try:
                await jetstream.stream_info(name)
            except NotFoundError:
                await jetstream.add_stream(wanted)

    async def bucket(self) -> KeyValue:
        """The bucket of the leases. Raises OSError, NatsError."""
        jetstream = self._connected_jetstream()
        try:
            return await jetstream.key_value(BUCKET)
        except NotFoundError:
            wanted = KeyValueConfig(bucket=BUCKET, history=1, direct=True, replicas=self._settings.replicas)
            return await jetstream.create_key_value(wanted)

    def _connected_jetstream(self) -> JetStreamContext:
        if self._jetstream is None:
            raise ConnectionError("there is no connection")
        return self._jetstream

    def _taking(self, take: Take) -> Callable[[Msg], Awaitable[None]]:
        async def called(message: Msg) -> None:
            try:
                take(message.data)
            except Exception:  # one message must not end the subscription, nor pass for a failure of the broker
                self._counters["failed"] += 1
                log.exception("bus: a message on %s could not be taken", message.subject)

        return called

    async def _publish(self, subject: str, data: bytes) -> None:
        try:
            await self._client.publish(subject, data)
            self._counters["sent"] += 1
            self._counters["sent_bytes"] += len(data)
        except (NatsError, OSError) as error:
            self._counters["no_broker"] += 1
            self._tell(str(error) or type(error).__name__)

    async def _connect(self, on_connected: Callable[[], Awaitable[None]]) -> None:
        """For ever: a client that has given up, whatever a server said to it, gives way to a new one."""
        while True:
            closed = asyncio.Event()
            try:
                await self._connect_once(closed, on_connected)
                await closed.wait()
                self._tell("the server has ended the connection")
            except Exception as error:  # whatever comes from a server is no reason to stay away from the others
                self._tell(str(error) or type(error).__name__)
            self._jetstream = None
            self._subscribed = {}
            await self._close()
            await asyncio.sleep(RETRY)
            self._client = Client()

    async def _connect_once(self, closed: asyncio.Event, on_connected: Callable[[], Awaitable[None]]) -> None:
        """Later the client connects again by itself, until it gives up: then `closed` is set."""

        async def reconnected() -> None:
            log.info("bus: connected to %s again", self.server)
            self._told = ""
            await on_connected()

        async def given_up() -> None:
            closed.set()

        await self._client.connect(
            self._settings.url,
            name=self._settings.name,
            tls=self._tls,
            error_cb=self._on_error,
            reconnected_cb=reconnected,
            disconnected_cb=self._on_disconnected,
            closed_cb=given_up,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RETRY,  # type: ignore[arg-type]  # it sleeps for so long, a fraction or not
            connect_timeout=self._settings.timeout,  # type: ignore[arg-type]
            ping_interval=PING,
            inbox_prefix=f"_INBOX.{self._settings.name.replace('.', '/')}",
            no_echo=True,
        )
        domain = self._settings.domain or None
        self._jetstream = self._client.jetstream(timeout=self._settings.timeout, domain=domain)
        await self.listen(self._takers)
        log.info("bus: connected to %s", self.server)
        self._told = ""
        await on_connected()

    async def _on_error(self, error: Exception) -> None:
        self._tell(str(error) or type(error).__name__)

    async def _on_disconnected(self) -> None:
        if self._task is not None and not self._task.cancelled():
            self._tell("the connection is lost")

    def _tell(self, what: str) -> None:
        """Log a failure, once until it is another one or the connection is there again."""
        if what != self._told:
            self._told = what
            log.warning("bus: %s; %s", what, way_out(what))


def way_out(what: str) -> str:
    if "certificate" in what.lower():
        return "see bus.ca_file, bus.certificate_file and the servers' own certificates"
    if "permissions" in what.lower() or "authorization" in what.lower():
        return "see the servers' accounts and permissions; `scentd files nats-server.conf` has those that are needed"
    return "it is tried again; see bus.url, and whether a server listens there"


def tls_context(settings: Bus) -> ssl.SSLContext | None:
    """Raises HostError."""
    if not (settings.ca_file or settings.certificate_file or any(u.startswith("tls:") for u in settings.url)):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise HostError(f"bus.ca_file {settings.ca_file}: {error.strerror or error}") from None
    if settings.certificate_file:
        try:
            context.load_cert_chain(settings.certificate_file, settings.certificate_key_file)
        except (OSError, ssl.SSLError) as error:
            files = f"{settings.certificate_file}, {settings.certificate_key_file}"
            raise HostError(f"bus.certificate_file: {files}: {error.strerror or error}") from None
    return context
