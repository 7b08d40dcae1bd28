"""POSTs a decision as JSON, signed as Standard Webhooks says, and says when to try again."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from scentd.act.actuator import ActuatorKind, Attempt, Tally
from scentd.config.policy import Policy
from scentd.config.schema import kind_of
from scentd.config.sections import Config
from scentd.core.allocate.actions.webhook import message_id, site
from scentd.errors import HostError, KeyFileError
from scentd.state import key_files

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds before the second try; doubles
PAUSE_MAX = 60.0
RETRY_AFTER_MAX = 3600.0  # seconds that a server may ask for
PASSING = (408, 425, 429)  # of 4xx: another try may do
ANSWER_MAX = 4096  # bytes of an answer that are read and thrown away
SECRETS_MAX = 4  # lines of a secret file
SECRET_SIZES = range(24, 65)  # bytes, by Standard Webhooks
PREFIX = "whsec_"
FIXED_HEADERS = {"User-Agent": "scentd", "Content-Type": "application/json", "Connection": "close"}
CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


class PostError(HostError):
    """A try that failed. `after`: seconds that the server asks to wait; None: another try cannot help."""

    def __init__(self, text: str, after: float | None = 0.0) -> None:
        super().__init__(text)
        self.after = after


class WebhookActuator(ActuatorKind):
    """Sends webhooks. Counts webhook_posts, webhook_failures (each try), webhook_retries and webhook_given_up."""

    def notes(self, config: Config) -> list[str]:
        """The policies whose secret cannot be read here."""
        hooks = [p for p in config.policy if kind_of(p.do) == "webhook"]
        return [note for policy in hooks if (note := secret_note(policy))]

    def carry_out(self, attempt: Attempt, tally: Tally) -> float | None:
        """POST once. A receiver may get a decision twice, with the same webhook-id."""
        do, decision = attempt.oneshot.action, attempt.oneshot.decision
        tally.add("webhook_retries" if attempt.tries else "webhook_posts")
        try:
            secrets = read_secrets(do.secret_file) if do.secret_file else []
            headers = signed(message_id(decision, os.uname().nodename), int(time.time()), attempt.payload, secrets)
            post(do.url, attempt.payload, do.timeout, headers)
            return None
        except PostError as error:
            after, why = error.after, str(error)
        except KeyFileError as error:  # it is not sent without its signature
            after, why = 0.0, str(error)
        tally.add("webhook_failures")
        wait = None if after is None else max(after, pause(attempt.tries))
        if wait is None or attempt.age + wait > do.retry_for:
            tally.add("webhook_given_up")
            log.error("policy %s: %s; given up after %d tries", decision.policy, why, attempt.tries + 1)
            return None
        if attempt.tries == 0:  # one line when it begins to fail, and one when it is given up
            log.warning("policy %s: %s; tried again for %g s", decision.policy, why, do.retry_for)
        return wait


def pause(tries: int) -> float:
    """Seconds before the next try, after so many besides the first: they double; the half of it is chance."""
    longest = min(PAUSE * 2 ** min(tries, 16), PAUSE_MAX)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)


# -- signing ---------------------------------------------------------------


def signed(message: str, timestamp: int, payload: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The headers of a message; a signature for each secret, so that a receiver can change its secret.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    headers = {"webhook-id": message, "webhook-timestamp": str(timestamp)}
    content = f"{message}.{timestamp}.".encode() + payload
    made = [base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode() for secret in secrets]
    return {**headers, "webhook-signature": " ".join(f"v1,{text}" for text in made)} if made else headers


def read_secrets(name: str) -> list[bytes]:
    """The secrets of a file or credential, one a line. They are read for each try, so that a new file counts at once.

    Raises KeyFileError, without any of the text.
    """
    setting = "do.secret_file"
    content = key_files.read(setting, name, 1024, "make one with: (umask 077; scentd keygen > {path})")
    lines = content.decode("ascii", "replace").split()
    if not 1 <= len(lines) <= SECRETS_MAX:
        raise KeyFileError(f"{setting} {name}: write 1 to {SECRETS_MAX} secrets, one a line; it has {len(lines)}")
    return [parse_secret(line, f"{setting} {name}: line {i + 1}") for i, line in enumerate(lines)]


def parse_secret(line: str, where: str) -> bytes:
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise KeyFileError(
            f"{where}: not base64, with or without {PREFIX}; make a secret with `scentd keygen`"
        ) from None
    if len(secret) not in SECRET_SIZES:
        raise KeyFileError(f"{where}: {len(secret)} bytes, not 24 to 64; make a secret with `scentd keygen`")
    return secret


def secret_note(policy: Policy) -> str:
    name = getattr(policy.do, "secret_file", "")
    if name.startswith(key_files.CREDENTIAL) and "CREDENTIALS_DIRECTORY" not in os.environ:
        return f"policy {policy.name}: do.secret_file is a systemd credential, so it was not read here"
    try:
        if name:
            read_secrets(name)
    except KeyFileError as error:
        return f"policy {policy.name}: the webhook is not sent: {error}"
    return ""


# -- sending ---------------------------------------------------------------


def post(url: str, payload: bytes, timeout: float, headers: dict[str, str]) -> int:
    """POST the payload and return the 2xx status. No proxy of the environment counts, no redirect is followed.

    Connecting may take `timeout` seconds, and the rest as many. Raises PostError; its text names the server only,
    because the rest of a webhook's URL is often secret.
    """
    where = f"webhook {site(url)}"
    connection = connect(url, timeout, where)
    expired = threading.Event()
    watchdog = threading.Timer(timeout, shut, (connection.sock, expired))
    watchdog.daemon = True
    watchdog.start()
    try:
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        connection.request("POST", target(url), payload, {**headers, **FIXED_HEADERS})
        answer = connection.getresponse()
        with suppress(http.client.HTTPException):  # its status has come, and counts
            answer.read(ANSWER_MAX)
    except ssl.SSLCertVerificationError as error:
        text = f"{where}: {error.verify_message}; add its authority to the system's trust store"
        raise PostError(text) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"no answer within {timeout:g} s" if expired.is_set() else error or type(error).__name__
        raise PostError(f"{where}: {reason}; check do.url and do.timeout") from None
    finally:
        watchdog.cancel()
        connection.close()
    return judge(answer, where)


def connect(url: str, timeout: float, where: str) -> http.client.HTTPConnection:
    """A connection whose TLS has not begun: the watchdog bounds it. Raises PostError."""
    try:
        parts = urlsplit(url)
        kind = CONNECTIONS.get(parts.scheme)
        if kind is None or not parts.hostname:
            raise PostError(f"{where}: no web address; check do.url", None)
        connection = kind(parts.hostname, parts.port, timeout=timeout)
        http.client.HTTPConnection.connect(connection)
    except (OSError, http.client.HTTPException) as error:
        raise PostError(f"{where}: {error or type(error).__name__}; check do.url") from None
    except ValueError as error:  # http://[::1
        raise PostError(f"{where}: {error}; check do.url", None) from None
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection.sock = context.wrap_socket(
            connection.sock, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    return connection


def target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def judge(answer: http.client.HTTPResponse, where: str) -> int:
    """The status if it is 2xx. Raises PostError."""
    status = answer.status
    if 200 <= status < 300:
        return status
    text = f"{where}: answered {status} {answer.reason}"
    if 300 <= status < 400:  # a redirected POST becomes a GET, or tells the decision to a server nobody configured
        raise PostError(f"{text}; name the final address in do.url", None)
    if 400 <= status < 500 and status not in PASSING:
        raise PostError(text, None)
    raise PostError(text, retry_after(answer.headers.get("Retry-After", ""), time.time()))


def retry_after(text: str, now: float) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3), at most RETRY_AFTER_MAX; 0.0 for nonsense."""
    try:
        seconds = float(text) if text.isascii() and text.isdigit() else parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX)


def shut(sock: socket.socket, expired: threading.Event) -> None:
    """Shut the socket down, so that the reading thread sees the end of the stream: a socket's own timeout counts for
    each read, and a server that trickles would hold the thread for ever."""
    expired.set()
    with suppress(OSError):  # it is closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
