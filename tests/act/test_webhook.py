"""Webhooks to a real HTTP server."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import msgspec
import pytest
from certificates import self_signed
from deeds import DECISION, server, serving
from firings import firing

from scentd.act import webhook
from scentd.act.actuator import Attempt, Tally
from scentd.act.webhook import PostError, WebhookActuator
from scentd.config.policy import Policy
from scentd.config.sections import Config
from scentd.core.allocate.actions.webhook import WebhookAction
from scentd.errors import HostError
from scentd.model import Oneshot

__all__ = ["server"]  # the fixture


def test_a_decision_is_posted_as_json(server):
    assert webhook.post(server.url, msgspec.json.encode(DECISION), 2.0, {}) == 200
    ((path, kind, body),) = server.seen
    assert (path, kind) == ("/secret", "application/json")
    assert json.loads(body)["reason"] == DECISION.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/elsewhere"])
def test_redirects_are_not_followed(server, status, location):
    server.answers, server.location = [status], location
    with pytest.raises(HostError, match=f"answered {status} .*; name the final address in do.url"):
        webhook.post(server.url, b"{}", 2.0, {})
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/", "data:,x", "nonsense", "http://", "http://[::1"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(HostError, match="webhook "):
        webhook.post(url, b"{}", 1.0, {})


def test_errors_are_host_errors_without_the_secret(server):
    server.answers = [500]
    with pytest.raises(HostError, match=r"http://127.0.0.1: answered 500") as raised:
        webhook.post(server.url, b"{}", 2.0, {})
    assert "secret" not in str(raised.value)
    with pytest.raises(HostError, match="refused"):
        webhook.post("http://127.0.0.1:1/secret", b"{}", 2.0, {})


def test_a_server_that_hangs_costs_the_timeout(server):
    server.answers = ["hang"]
    start = time.monotonic()
    with pytest.raises(HostError, match=r"no answer within 0\.2 s"):
        webhook.post(server.url, b"{}", 0.2, {})
    assert time.monotonic() - start < 2


def test_the_proxy_of_the_environment_does_not_count(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert webhook.post(server.url, b"{}", 2.0, {}) == 200


# -- over TLS, and servers that do as they please ----------------------------


def test_over_tls_only_to_who_has_a_certificate(tmp_path, monkeypatch):
    certificate = self_signed(tmp_path)
    with serving(certificate) as made:
        with pytest.raises(PostError, match=r"https://127\.0\.0\.1: .*trust store"):
            webhook.post(made.url, b"{}", 2.0, {})
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert webhook.post(made.url, b"{}", 2.0, {}) == 200
        assert len(made.seen) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_trickles_costs_the_timeout(scheme):
    """A byte each 50 ms: no single read is late. Over TLS it trickles a record that never ends."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle():
            end, _ = listening.accept()
            with end:
                while not stop.wait(0.05):
                    try:
                        end.send(b"\x16" if scheme == "https" else b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            began = time.monotonic()
            with pytest.raises(PostError):
                webhook.post(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/", b"{}", 0.5, {})
            assert time.monotonic() - began < 3
        finally:
            stop.set()
            thread.join()


# -- one try -----------------------------------------------------------------


def attempt(url, tries=0, age=0.0, decision=DECISION, **settings):
    do = WebhookAction(url=url, timeout=2.0, **settings)
    return Attempt(Oneshot(do, decision, firing(do)), msgspec.json.encode(decision), tries, age)


AGAIN = (408, 425, 429, 500, 501, 503)


@pytest.mark.parametrize(
    ("status", "again"),
    [(status, status in AGAIN) for status in (200, 204, 302, 400, 404, 410, 422, *AGAIN)],
)
def test_which_answers_are_worth_another_try(server, status, again):
    server.answers, server.location = [status], "/elsewhere"
    tally = Tally()
    pause = WebhookActuator().carry_out(attempt(server.url), tally)
    assert (pause is not None) is again
    assert tally.all().get("webhook_given_up", 0) == (status >= 300 and not again)


def test_pauses_double_up_to_a_limit_and_differ():
    longest = [max(webhook.pause(tries) for _ in range(200)) for tries in range(100)]
    shortest = [min(webhook.pause(tries) for _ in range(200)) for tries in range(100)]
    for tries in range(100):
        assert min(2**tries, webhook.PAUSE_MAX) / 2 <= shortest[tries] < longest[tries] <= webhook.PAUSE_MAX


def test_a_server_may_ask_for_a_longer_pause_within_bounds(server):
    def pause_after(value, **settings):
        server.answers, server.extra = [503], {"Retry-After": value}
        return WebhookActuator().carry_out(attempt(server.url, **settings), Tally())

    assert pause_after("7") == 7
    assert 25 < pause_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert pause_after("99999999999999999999", retry_for=86400.0) == webhook.RETRY_AFTER_MAX
    for nonsense in ("soon", "-5", "nan", "1e9", formatdate(0, usegmt=True)):
        assert 0 < pause_after(nonsense) <= 1
    assert pause_after("601") is None  # it would be after retry_for: given up at once


def test_it_is_given_up_when_its_time_is_over(server, caplog):
    server.answers = [500] * 3
    actuator, tally = WebhookActuator(), Tally()
    assert actuator.carry_out(attempt(server.url, retry_for=0.0), tally) is None
    assert actuator.carry_out(attempt(server.url, tries=9, age=500.0), tally) is not None
    assert actuator.carry_out(attempt(server.url, tries=10, age=599.9), tally) is None
    assert tally.all() == {"webhook_posts": 1, "webhook_retries": 2, "webhook_failures": 3, "webhook_given_up": 2}
    assert "given up after 11 tries" in caplog.text
    assert "secret" not in caplog.text


# -- signatures --------------------------------------------------------------


def verified(headers, body, secret):
    """As a receiver would do it, by the specification alone. `secret`: a line of the file."""
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{expected}" in headers["webhook-signature"].split(" ")


def secret_file(path, *lines, mode=0o600):
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return str(path)


ONE = "whsec_" + base64.b64encode(b"1" * 24).decode()
CREDENTIAL = "credential:hook"
TWO = base64.b64encode(b"2" * 32).decode()


def test_a_receiver_can_verify_the_signature(server, tmp_path):
    name = secret_file(tmp_path / "secret", ONE, TWO)
    before = int(time.time())
    assert WebhookActuator().carry_out(attempt(server.url, secret_file=name), Tally()) is None
    (headers,), ((_, _, body),) = server.headers, server.seen
    assert verified(headers, body, ONE)
    assert verified(headers, body, TWO)  # while a receiver changes from the one to the other
    assert not verified(headers, body, base64.b64encode(b"3" * 32).decode())
    assert not verified(headers, body + b" ", ONE)
    assert before <= int(headers["webhook-timestamp"]) <= time.time()


def test_the_example_of_the_specification():
    """The test vector of the reference libraries of Standard Webhooks."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = webhook.signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [key])
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_a_secret_there_is_no_signature(server):
    WebhookActuator().carry_out(attempt(server.url), Tally())
    assert "webhook-signature" not in server.headers[0]
    assert server.headers[0]["webhook-id"].startswith("msg_")


def test_the_id_is_the_decisions_for_every_try_and_after_a_restart(server):
    """A daemon that was restarted decides at another time, and by the same statement."""
    server.answers = [503, 200, 200, 200]
    later = replace(DECISION, at=DECISION.at + 100, reason="the same, seen later")
    other = replace(DECISION, epoch=DECISION.epoch + 5)
    for tries, decision in enumerate((DECISION, DECISION, later, other)):
        WebhookActuator().carry_out(attempt(server.url, tries=tries, decision=decision), Tally())
    first, second, third, fourth = (h["webhook-id"] for h in server.headers)
    assert first == second == third != fourth


@pytest.mark.parametrize(
    ("lines", "mode", "why"),
    [
        (["nonsense!"], 0o600, "line 1: not base64"),
        ([ONE, base64.b64encode(b"short").decode()], 0o600, "line 2: 5 bytes, not 24 to 64"),
        ([], 0o600, "write 1 to 4 secrets"),
        ([ONE], 0o644, "chmod 0600"),
    ],
)
def test_without_a_right_secret_nothing_is_sent_until_it_is_right(server, tmp_path, caplog, lines, mode, why):
    name = secret_file(tmp_path / "secret", *lines, mode=mode)
    tally = Tally()
    assert WebhookActuator().carry_out(attempt(server.url, secret_file=name), tally) is not None
    assert server.seen == []
    assert why in caplog.text
    assert not any(line in caplog.text for line in lines)
    policy = Policy(name="p", when="true", do=WebhookAction(url=server.url, secret_file=name))
    (note,) = WebhookActuator().notes(Config(policy=[policy]))
    assert why in note
    secret_file(tmp_path / "secret", ONE)
    assert WebhookActuator().notes(Config(policy=[policy])) == []
    assert WebhookActuator().carry_out(attempt(server.url, tries=1, secret_file=name), tally) is None


def test_a_secret_may_be_a_systemd_credential(server, tmp_path, monkeypatch):
    policy = Policy(name="p", when="true", do=WebhookAction(url=server.url, secret_file=CREDENTIAL))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "is a systemd credential" in WebhookActuator().notes(Config(policy=[policy]))[0]
    secret_file(tmp_path / "hook", ONE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert WebhookActuator().carry_out(attempt(server.url, secret_file=CREDENTIAL), Tally()) is None
    assert verified(server.headers[0], server.seen[0][2], ONE)
