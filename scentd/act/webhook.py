"""POSTs a decision as JSON."""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.error
import urllib.request
from typing import IO

from scentd.act.actuator import ActuatorKind, Tally
from scentd.core.allocate.actions.webhook import site
from scentd.errors import HostError
from scentd.model import Oneshot

log = logging.getLogger(__name__)

TRIES = 3
PAUSE = 1.0  # seconds before the second try; doubles
ANSWER_MAX = 4096  # bytes that are read of an answer, and thrown away


class WebhookActuator(ActuatorKind):
    """Counts webhook_posts, webhook_failures (each try) and webhook_given_up."""

    def carry_out(self, oneshot: Oneshot, payload: bytes, tally: Tally, closing: threading.Event) -> None:
        """Up to TRIES times: a receiver may get a decision twice, told by its time and policy."""
        do = oneshot.action
        tally.add("webhook_posts")
        for i in range(TRIES):
            try:
                post(do.url, payload, do.timeout)
                return
            except HostError as error:
                tally.add("webhook_failures")
                log.error("policy %s: %s", oneshot.decision.policy, error)
            if i + 1 == TRIES or closing.wait(PAUSE * 2**i):
                break
        tally.add("webhook_given_up")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET or leaks the decision to a place nobody configured: a 3xx is an error."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> None:
        return None


def opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone, no proxy: with urllib's default, file: and ftp: URLs and the environment count."""
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        NoRedirect(),
        urllib.request.UnknownHandler(),
    ):
        made.add_handler(handler)
    return made


def post(url: str, payload: bytes, timeout: float) -> int:
    """POST the payload and return the 2xx status.

    `timeout` seconds are granted to connecting and to each wait for an answer. Raises HostError; its text names the
    server only, as the rest of a webhook's URL often is its secret.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "scentd"}
    where = site(url)
    try:
        request = urllib.request.Request(url, data=payload, headers=headers, method="POST")  # noqa: S310 (see opener)
        with opener().open(request, timeout=timeout) as answer:
            answer.read(ANSWER_MAX)
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        hint = "; name the final address in do.url" if 300 <= error.code < 400 else ""
        raise HostError(f"webhook {where}: answered {error.code} {error.reason}{hint}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise HostError(f"webhook {where}: {reason}; check do.url") from None
