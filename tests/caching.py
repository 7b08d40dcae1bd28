"""Real nginx as origin behind a path with real latency, real nginx with proxy_cache as edges, clients in a namespace.

client 10.1.0.1, fd01::1 ---- host 10.1.0.2, fd01::2; its edge listens on port 8080
                              host 10.3.0.1, fd03::1 ---- 40 ms each way ---- origin 10.3.0.2, fd03::2, port 80
                              host 10.4.0.1, fd04::1 ---- 60 ms each way ---- far 10.4.0.2, fd04::2: an edge, port 8080
"""

import os
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from ipaddress import ip_network
from pathlib import Path

from shaping import InHost
from slow_wire import SlowWire
from topology import Topology

from scentd.act.actuator import Tally
from scentd.act.resources.backend import BackendSetting
from scentd.act.resources.cache import CacheBackend
from scentd.act.resources.cache_section import CacheEdge, CacheResource

SECONDS = 10.0  # until something is there
DELAY, FARTHER = 0.04, 0.06  # seconds, each way
ORIGIN = {4: "10.3.0.2", 6: "fd03::2"}
ORIGINS = ["10.3.0.2:80", "[fd03::2]:80"]
HERE = CacheEdge(name="here", address=["10.1.0.2:8080", "[fd01::2]:8080"], region="eu")
FAR = CacheEdge(name="far", address=["10.4.0.2:8080", "[fd04::2]:8080"], region="asia")
WRONG = CacheEdge(name="wrong", address=["10.1.0.2:8081", "[fd01::2]:8081"])
PEERS = {
    "client": (ip_network("10.1.0.1/32"), ip_network("fd01::/64")),
    "other": (ip_network("10.2.0.0/16"), ip_network("fd02::/64")),
}
BASE = """
daemon off; master_process off; user root; pid {directory}/{name}.pid; error_log {directory}/{name}.err;
events {{ worker_connections 100; }}
http {{
  proxy_temp_path {directory}/{name}.t1; client_body_temp_path {directory}/{name}.t2;
  fastcgi_temp_path {directory}/{name}.t3; uwsgi_temp_path {directory}/{name}.t4; scgi_temp_path {directory}/{name}.t5;
  {body}
}}
"""
SITE = """access_log {directory}/access.log combined; server {{ listen 80; listen [::]:80; root {directory}/www;
  add_header Cache-Control max-age=600; location /slow/ {{ limit_rate 100k; alias {directory}/www/; }} }}"""
EDGE = """access_log off;
  proxy_cache_path {directory}/{name}.cache keys_zone=z:1m; server {{ listen 8080; listen [::]:8080;
  location / {{ proxy_pass http://10.3.0.2; proxy_set_header Host $http_host; proxy_cache z;
    add_header X-Cache $upstream_cache_status; }} }}
  server {{ listen 8081; listen [::]:8081; return 404; }}"""


class Nginx:
    def __init__(self, host, name, directory, body):
        path = directory / f"{name}.conf"
        values = {"directory": directory, "name": name}
        path.write_text(BASE.format(**values, body=body.format(**values)))
        self.host, self.argv = host, ("nginx", "-c", str(path), "-e", f"{directory}/{name}.err")
        self.port = 80 if "listen 80;" in body else 8080
        self.start()

    def start(self):
        self.process = self.host.start(*self.argv)
        until(lambda: f":{self.port} " in self.host.out("ss", "-ltn"))

    def stop(self):
        self.process.kill()
        self.process.wait()


def site_files(directory):
    """The objects of the site."""
    (directory / "www").mkdir()
    for name, size in (("index.html", 100), ("logo.png", 20_000), ("app.js", 50_000), ("big.bin", 400_000)):
        (directory / "www" / name).write_bytes(os.urandom(size))


@contextmanager
def world(directory):
    with Topology("edg") as net:
        client, host, origin, far = (
            net.host("client"),
            net.host("host", forward=True),
            net.host("origin"),
            net.host("far"),
        )
        net.link(client, host, ipv4="10.1.0.0/24", ipv6="fd01::/64")
        near = SlowWire(net, host, origin, ipv4="10.3.0.0/24", ipv6="fd03::/64", delay=DELAY)
        farther = SlowWire(net, host, far, ipv4="10.4.0.0/24", ipv6="fd04::/64", delay=FARTHER)
        with near, farther:
            for one, to in ((client, "1"), (origin, "3"), (far, "4")):
                gateway = "2" if one is client else "1"
                one.ip(f"route add default via 10.{to}.0.{gateway}", f"route add default via fd0{to}::{gateway}")
            net.servers = {
                "origin": Nginx(origin, "origin", directory, SITE),
                "here": Nginx(host, "here", directory, EDGE),
                "far": Nginx(far, "far", directory, EDGE),
            }
            yield net


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cache(net, edges=(HERE,), hurting=(), peers=PEERS, **more):
    more = {"check": "/logo.png", "access_log": str(net.log), **more}
    section = CacheResource(name="web", origin=ORIGINS, edge=list(edges), **more)
    setting = BackendSetting(peers, Path("/nowhere"), Tally(), hurting=lambda peer: hurting)
    return closing(InHost(net.hosts["host"], CacheBackend(section, setting)))


def counts(steered):
    return steered.backend.setting.tally.all()


def get(net, path="/logo.png", family=4, who="client"):
    """(seconds, X-Cache, body) of an object that a host asks the origin for."""

    def ask():
        begun = time.monotonic()
        with closing(HTTPConnection(ORIGIN[family], 80, timeout=SECONDS)) as server:
            server.request("GET", path)
            answer = server.getresponse()
            body = answer.read()
            return time.monotonic() - begun, answer.getheader("X-Cache"), body

    return net.hosts[who].call(ask)


def through(net, path="/logo.png"):
    """What each family's answer says of the cache; None is the origin itself."""
    return [get(net, path, family)[1] for family in (4, 6)]


def rules(net):
    return net.hosts["host"].out("nft", "list", "ruleset")
