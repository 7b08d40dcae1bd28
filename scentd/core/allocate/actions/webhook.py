"""Webhook: sends the decision to a server, as JSON, until the server has taken it or the time for it is over."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from scentd.config.policy import Action
from scentd.config.units import Seconds
from scentd.core.allocate.actions.action import EdgeKind
from scentd.model import Decision

TIMEOUT_MAX = 60.0  # seconds: a try holds a thread for so long
RETRY_FOR_MAX = 86400.0


class WebhookAction(Action, tag_field="kind", tag="webhook"):
    """POST the decision as JSON."""

    url: str
    timeout: Seconds = 5.0  # of one try
    retry_for: Seconds = 600.0  # after the first try; 0: one try alone
    secret_file: str = ""  # signs what is sent; a file of mode 0600, or credential:NAME

    def mistakes(self, path: str) -> list[str]:
        wrong = f"{path}.url: {self.url!r} is no web address; write http://... or https://..."
        problems = [] if is_web(self.url) else [wrong]
        if not 0 < self.timeout <= TIMEOUT_MAX:
            problems.append(f'{path}.timeout: write more than 0s, at most {TIMEOUT_MAX:g}s; "5s" is usual')
        if not 0 <= self.retry_for <= RETRY_FOR_MAX:
            problems.append(f'{path}.retry_for: write 0s for one try alone, at most {RETRY_FOR_MAX / 3600:g}h; "10m"')
        return problems


class WebhookKind(EdgeKind[WebhookAction]):
    section = WebhookAction

    def text(self, do: WebhookAction) -> str:
        return site(do.url)


def message_id(decision: Decision, host: str) -> str:
    """The idempotency key of a decision on this host: the same for every try, and by a daemon that was restarted.

    A policy fires at most once for each statement of a peer, so that policy, peer and epoch name the firing.
    """
    named = (host, decision.policy, decision.peer, str(decision.epoch), decision.action, decision.target)
    return "msg_" + hashlib.sha256("\0".join(named).encode()).hexdigest()[:32]


def is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the host or the port
        return False


def site(url: str) -> str:
    """Scheme and host of a URL, without the path, which often is the webhook's secret."""
    try:
        parts = urlsplit(url)
    except ValueError:  # http://[::1
        return "(not a URL)"
    return f"{parts.scheme}://{parts.hostname or ''}"
