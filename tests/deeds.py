"""What the tests of commands, webhooks and oneshots share: a decision, a shell, a web server that answers as told."""

import contextlib
import http.server
import os
import pwd
import ssl
import threading
import time

import pytest

from scentd.model import Decision

DECISION = Decision(1.0, "a", "p", 100, "command", "a", "", "/bin/x", "cpu > 0.8 [cpu=0.9]")
ME = pwd.getpwuid(os.geteuid()).pw_name


def shell(script):
    return ["/bin/sh", "-c", script]


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Content-Type"], body))
        self.server.headers.append(self.headers)
        status = self.server.answers.pop(0) if self.server.answers else 200
        if status == "hang":
            self.server.hang.wait(5)
            return
        self.send_response(status)
        for name, value in self.server.extra.items():
            self.send_header(name, value)
        if 300 <= status < 400:
            self.send_header("Location", self.server.location)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(certificate=None):
    """A server on a free port, over TLS if there is a certificate: the files of (certificate, key)."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.seen, made.answers, made.location, made.hang = [], [], "", threading.Event()
    made.headers, made.extra = [], {}
    made.url = f"{'https' if certificate else 'http'}://127.0.0.1:{made.server_port}/secret"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.hang.set()
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture
def server():
    with serving() as made:
        yield made
