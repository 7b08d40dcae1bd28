"""What `scentd doctor` says of the NATS servers of a fleet: each is asked as a client of this host would ask it."""

from __future__ import annotations

import importlib.util
import socket
import ssl
from urllib.parse import urlsplit

from scentd.config.bus import Bus
from scentd.config.provide import offered
from scentd.config.sections import Config
from scentd.doctor.examine import Check
from scentd.errors import HostError

TITLE = "NATS servers"
PORT = 4222
GREETING_MAX = 8192  # bytes; nats-server introduces itself by one line


def check_bus(config: Config) -> list[Check]:
    """One row; none for a host that is on no bus."""
    bus = config.bus
    if not bus.used:
        return []
    if importlib.util.find_spec("nats") is None:
        return [Check(TITLE, "no", "the package nats-py is missing", "pip install 'scentd[bus]'")]
    from scentd.bus.nats import tls_context, way_out

    try:
        context = tls_context(bus)
    except HostError as error:
        return [Check(TITLE, "no", str(error), "correct that setting of [bus]")]
    failed = {url: why for url in bus.url if (why := why_not(url, bus, context))}
    answer = f"{len(bus.url) - len(failed)} of {len(bus.url)} answer{duties(config)}"
    if not failed:
        return [Check(TITLE, "yes", answer)]
    found = "; ".join([answer, *(f"{url}: {why}" for url, why in failed.items())])
    return [Check(TITLE, "warning" if len(failed) < len(bus.url) else "no", found, way_out(found))]


def duties(config: Config) -> str:
    """What this host does with resources of others, or others with its own."""
    providers = [host.name for host in config.bus.host if "provide" in host.duties]
    allocators = [host.name for host in config.bus.host if "allocate" in host.duties]
    found = f"; allocates resources of {', '.join(providers)} under the lease of {config.bus.name}" if providers else ""
    if resources := [resource.name for resource in offered(config)]:
        found += f"; provides {', '.join(resources)} for {', '.join(allocators)}"
    return found


def why_not(url: str, bus: Bus, context: ssl.SSLContext | None) -> str:
    """Why a server does not answer a client of this host; "" if it does.

    nats-server speaks first, in clear, and only then TLS. It refuses a client's certificate by its first answer.
    """
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port or PORT), bus.timeout) as end:
            if not end.recv(GREETING_MAX).startswith(b"INFO "):
                return "answers, but is no nats-server"
            if context is None:
                return ""
            with context.wrap_socket(end, server_hostname=parts.hostname) as secured:
                secured.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nPING\r\n')
                answer = secured.recv(GREETING_MAX)
                return "" if answer.startswith((b"PONG", b"INFO")) else answer.decode(errors="replace").strip()
    except (OSError, ssl.SSLError) as error:
        return error.strerror or str(error)
