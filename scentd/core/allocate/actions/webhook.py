"""Webhook: sends the decision to a server once, as JSON."""

from __future__ import annotations

from urllib.parse import urlsplit

from scentd.config.policy import Action
from scentd.config.units import Seconds
from scentd.core.allocate.actions.action import EdgeKind


class WebhookAction(Action, tag_field="kind", tag="webhook"):
    """POST the decision as JSON."""

    url: str
    timeout: Seconds = 5.0

    def mistakes(self, path: str) -> list[str]:
        return (
            [] if is_web(self.url) else [f"{path}.url: {self.url!r} is no web address; write http://... or https://..."]
        )


class WebhookKind(EdgeKind[WebhookAction]):
    section = WebhookAction

    def text(self, do: WebhookAction) -> str:
        return site(do.url)


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
