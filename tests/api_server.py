"""What stands in for a Kubernetes API server, which cannot run here: TLS, tokens, versions, scale, watches.

Its answers are those of the API's own OpenAPI: each scale that it sends or gets must be one that the client library's
model (V1Scale, V1Status) reads back equal. One controller is played: a while after spec.replicas changed, as many are
ready.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from certificates import self_signed
from kubernetes import client


class Cluster:
    """Deployments by name, and what the server is to do wrong."""

    def __init__(self, directory: Path) -> None:
        self.ca, self.key = self_signed(directory)
        self.token_file = directory / "token"
        self.token_file.write_text("secret-token\n")
        self.token = "secret-token"  # noqa: S105 (of this test)
        self.replicas: dict[str, int] = {}
        self.ready: dict[str, int] = {}
        self.version = 100
        self.changed = threading.Condition()
        self.delay = 0.1  # until what was asked for is ready; infinite: never
        self.forbidden: set[str] = set()  # verbs
        self.interfere = 0  # so many writes of others come in between
        self.broken = 0  # so many answers are 500
        self.written: list[dict[str, Any]] = []

    def touch(self) -> None:
        with self.changed:
            self.version += 1
            self.changed.notify_all()

    def be_ready(self, name: str, number: int) -> None:
        self.ready[name] = number
        self.touch()

    def deployment(self, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": str(self.version)},
            "spec": {"replicas": self.replicas[name]},
            "status": {"replicas": self.replicas[name], "readyReplicas": self.ready[name]},
        }

    def scale(self, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": str(self.version)},
            "spec": {"replicas": self.replicas[name]},
            "status": {"replicas": self.ready[name], "selector": f"app={name}"},
        }


class Refusal(Exception):
    """A Status of the API, as meta/v1 has it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


def as_model(data: dict[str, Any], model: type) -> None:
    """The library's model reads this, and writes the same."""
    api = client.ApiClient()
    assert api.sanitize_for_serialization(model.from_dict(data)) == data, data


def handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer("get")

        def do_PUT(self) -> None:
            self.answer("update")

        def log_message(self, *_: object) -> None:
            return

        def answer(self, verb: str) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
            try:
                found = self.found(verb, body)
            except Refusal as refusal:
                as_model(refusal.body, client.V1Status)
                self.send(refusal.code, refusal.body)
                return
            if found is not None:
                self.send(200, found)

        def found(self, verb: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
            if self.headers.get("Authorization") != f"Bearer {cluster.token}":
                raise Refusal(401, "Unauthorized", "Unauthorized")
            if cluster.broken:
                cluster.broken -= 1
                raise Refusal(500, "InternalError", "etcdserver: request timed out")
            url = urlsplit(self.path)
            parts, query = url.path.strip("/").split("/"), parse_qs(url.query)
            assert parts[:6] == ["apis", "apps", "v1", "namespaces", "default", "deployments"], parts
            watching = query.get("watch") in (["true"], ["True"])
            self.may("watch" if watching else verb, "/scale" if parts[7:] == ["scale"] else "")
            if watching:
                self.watch(query)
                return None
            name = parts[6]
            if name not in cluster.replicas:
                raise Refusal(404, "NotFound", f'deployments.apps "{name}" not found')
            if parts[7:] != ["scale"]:
                return cluster.deployment(name)
            if verb == "update":
                assert body is not None
                return self.update(name, body)
            as_model(cluster.scale(name), client.V1Scale)
            return cluster.scale(name)

        def may(self, verb: str, subresource: str) -> None:
            if verb in cluster.forbidden:
                who = 'User "system:serviceaccount:default:scentd"'
                raise Refusal(
                    403, "Forbidden", f"deployments.apps{subresource} is forbidden: {who} cannot {verb} resource"
                )

        def update(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
            as_model(body, client.V1Scale)
            if cluster.interfere:
                cluster.interfere -= 1
                cluster.touch()
            if body["metadata"]["resourceVersion"] != str(cluster.version):
                raise Refusal(409, "Conflict", "the object has been modified; please apply your changes to the latest")
            cluster.written.append(body)
            cluster.replicas[name] = number = body["spec"]["replicas"]
            cluster.touch()
            if cluster.delay < 100:
                threading.Timer(cluster.delay, cluster.be_ready, (name, number)).start()
            return cluster.scale(name)

        def watch(self, query: dict[str, list[str]]) -> None:
            name = query["fieldSelector"][0].removeprefix("metadata.name=")
            seen, end = int(query["resourceVersion"][0]), time.monotonic() + float(query["timeoutSeconds"][0])
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while time.monotonic() < end:
                with cluster.changed:
                    if not cluster.changed.wait_for(lambda old=seen: cluster.version > old, end - time.monotonic()):
                        break
                    seen = cluster.version
                event = {"type": "MODIFIED", "object": cluster.deployment(name)}
                line = json.dumps(event).encode() + b"\n"
                try:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                except OSError:  # who watched has seen enough
                    return
            self.wfile.write(b"0\r\n\r\n")

        def send(self, code: int, data: dict[str, Any]) -> None:
            body = json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def running(cluster: Cluster):
    """Serve it; its `url` for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(cluster))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.ca, cluster.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
