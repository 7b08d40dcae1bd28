"""What runs on the two hosts besides scentd: nginx, a UDP application that asks the kernel for the options of
every packet it gets, and the tenant's senders. None of it knows of scentd.
"""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter

from lab import Host, Lab, wait_for

UDP_PORT = 5300
HTTP_PORT = 80
BIG = 256 * 1024 * 1024  # bytes, a sparse file
FLOW_SECONDS = 0.002
SILENCE = 0.3  # seconds without the steady flow: it is cut

# linux/in.h and linux/in6.h
IP_RECVOPTS = 6
IPV6_RECVHOPOPTS, IPV6_HOPOPTS = 53, 54
IPV6_RECVDSTOPTS, IPV6_DSTOPTS = 58, 59
ANCILLARY = 512

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{}}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    sendfile on;
    server {{
        listen {port};
        listen [::]:{port};
        root {directory}/www;
    }}
}}
"""


class Nginx:
    def __init__(self, lab: Lab, host: Host) -> None:
        self._directory = lab.directory / "nginx"
        www = self._directory / "www"
        www.mkdir(parents=True)
        (www / "index.html").write_text("hello from the service host\n")
        with open(www / "big", "wb") as file:
            file.truncate(BIG)
        (self._directory / "nginx.conf").write_text(NGINX.format(directory=self._directory, port=HTTP_PORT))
        argv = ("nginx", "-c", str(self._directory / "nginx.conf"), "-e", str(self._directory / "nginx-error.log"))
        self.process: subprocess.Popen[bytes] = lab.start(host, *argv, log="nginx.log")
        wait_for("nginx to listen", lambda: lab.inside(host, self._listens, host), 10)

    def _listens(self, host: Host) -> bool:
        with socket.socket(socket.AF_INET6) as probe:
            return probe.connect_ex((host.ipv6, HTTP_PORT)) == 0

    def served(self) -> Counter[int]:
        """Answered requests (HTTP status 200) by family."""
        lines = (self._directory / "access.log").read_text().splitlines()
        return Counter(6 if ":" in line.split()[0] else 4 for line in lines if '" 200 ' in line)


class Application:
    """Receives UDP in both families and, while `tapping`, sees every TCP packet that the host's stack gets."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.payloads: Counter[bytes] = Counter()
        self.flow: dict[int, float] = {}  # number of a packet of the steady flow -> when it came (monotonic)
        self.tapping = False
        self.forget()
        self._selector = selectors.DefaultSelector()
        for family in (4, 6):
            for kind in ("udp", "tap"):
                end = lab.inside(host, listener, family, kind)
                self._selector.register(end, selectors.EVENT_READ, (family, kind, end))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Start counting options anew."""
        self.packets = Counter[str]()  # "udp4" ... -> looked at
        self.scents = Counter[str]()  # with an option that is not padding
        self.padded = Counter[str]()  # with NOPs alone, what IPv4 has in place of a scent

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.data[2].close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                family, kind, end = key.data
                data, ancillary, *_ = end.recvmsg(65535, ANCILLARY)
                if kind == "udp":
                    self._take(data)
                elif not self.tapping:
                    continue
                self._look(f"{kind}{family}", family, options(family, kind, data, ancillary))

    def _take(self, data: bytes) -> None:
        if data.startswith(b"flow "):
            self.flow[int(data[5:])] = time.monotonic()
        else:
            self.payloads[data] += 1

    def _look(self, where: str, family: int, found: bytes) -> None:
        self.packets[where] += 1
        if family == 4 and found and not found.strip(b"\x01\x00"):
            self.padded[where] += 1
        elif found:
            self.scents[where] += 1


def listener(family: int, kind: str) -> socket.socket:
    """A UDP socket, or a raw one that gets a copy of every TCP packet; with the options of each."""
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    if kind == "udp":
        end = socket.socket(domain, socket.SOCK_DGRAM)
    else:
        end = socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_TCP)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if family == 4:
        end.setsockopt(socket.IPPROTO_IP, IP_RECVOPTS, 1)
    else:
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1)
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPOPTS, 1)
    if kind == "udp":
        if family == 6:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        end.bind(("", UDP_PORT))
    return end


def options(family: int, kind: str, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The options that came with a packet, b"" for none. Raw IPv4 sockets get the IP header itself."""
    if family == 4 and kind == "tap":
        return data[20 : (data[0] & 15) * 4]
    wanted = {4: (IP_RECVOPTS,), 6: (IPV6_HOPOPTS, IPV6_DSTOPTS)}[family]
    return b"".join(value for _, number, value in ancillary if number in wanted)


def udp_sender(family: int) -> socket.socket:
    return socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


class Flow:
    """The tenant's steady flow: a small UDP packet each FLOW_SECONDS. `sent[number]` is when it left (monotonic)."""

    def __init__(self, lab: Lab) -> None:
        self.sent: list[float] = []
        self._target = (lab.service.ipv4, UDP_PORT)
        self._end = lab.inside(lab.tenant, udp_sender, 4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._end.close()

    def _send(self) -> None:
        for number in itertools.count():
            if self._stop.wait(FLOW_SECONDS):
                return
            self.sent.append(time.monotonic())
            self._end.sendto(b"flow %d" % number, self._target)


def send_datagrams(lab: Lab, family: int, payload: bytes, count: int = 1) -> None:
    with lab.inside(lab.tenant, udp_sender, family) as end:
        for _ in range(count):
            end.sendto(payload, (lab.service.address(family), UDP_PORT))


def url(host: Host, family: int, path: str = "") -> str:
    name = host.ipv4 if family == 4 else f"[{host.ipv6}]"
    return f"http://{name}:{HTTP_PORT}/{path}"


def download(lab: Lab, family: int, seconds: float) -> tuple[list[str], float]:
    """(the command, Mbit/s) of a download by the tenant that is cut off after so long."""
    argv = ["curl", "-g", "-s", "-o", os.devnull, "--max-time", f"{seconds:g}", "-w", "%{size_download} %{time_total}"]
    argv.append(url(lab.service, family, "big"))
    size, took = lab.run(lab.tenant, *argv, statuses=(0, 28)).split()  # 28: cut off, as asked for
    return lab.tenant.argv(*argv), 8 * float(size) / max(float(took), 0.1) / 1e6


def ethernet(destination: str, source: str, family: int) -> bytes:
    """An Ethernet header; addresses as 02:00:..."""
    kind = 0x0800 if family == 4 else 0x86DD
    return bytes.fromhex(destination.replace(":", "") + source.replace(":", "")) + struct.pack("!H", kind)
