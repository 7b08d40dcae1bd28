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
ANSWER_MAX = 4096  # bytes of an answer that are read and thrown away


class WebhookActuator(ActuatorKind):
    """Sends webhooks. Counts webhook_posts, webhook_failures (each try) and webhook_given_up."""

    def carry_out(self, oneshot: Oneshot, payload: bytes, tally: Tally, closing: threading.Event) -> None:
        """POST up to TRIES times. A receiver may get a decision twice; its time and policy identify it."""
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
    """Makes a 3xx an error: a redirected POST becomes a GET, or leaks the decision to a server nobody configured."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> None:
        return None


def opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone, no proxy: urllib's default opener allows file: and ftp: and obeys the environment."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        NoRedirect(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


def post(url: str, payload: bytes, timeout: float) -> int:
    """POST the payload and return the 2xx status.

    Connecting and each wait for an answer may take `timeout` seconds. Raises HostError; its text names the
    server only, because the rest of a webhook's URL is often secret.
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
