"""What a hostile or broken world does to a running daemon: nothing.

a ---- b      b is the service host; a sprays, breaks files, fills disks
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import forge
import pytest
from hosts import Node, acquainted, answered, pair, peer_of, scentd, start, until

from scentd.errors import ScentdError
from scentd.wire import ip, layout

pytestmark = pytest.mark.netns

PAGE = b"""# TYPE load gauge
load{kind="nan"} nan
load{kind="inf"} +Inf
load{kind="good"} 40
garbage here
"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bi")
    with pair("bi", directory) as (a, b):
        full = b.directory / "full"
        full.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], check=True)
        pages = b.host.call(HTTPServer, ("127.0.0.1", 0), Page)
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{pages.server_port}/metrics"
            b.network["source"].append({"kind": "prometheus", "url": url, "series": "load", "full": 100})
            b.sections["allocator"] = {"history": str(full / "history.db")}
            b.sections["verify"] = {"absent": "drop"}  # strangers, too
            b.sections["policy"] = [{"name": "always", "when": "threat >= 0", "do": hook(pages.server_port)}]
            b.peers, a.peers = [peer_of(a, absent="drop")], [peer_of(b)]
            (full / "filler").write_bytes(bytes(1 << 20))
            start(a, b)
            acquainted(b, a)
            yield a, b
        finally:
            pages.shutdown()
            thread.join()
            pages.server_close()
            if b.running():
                b.stop()
            subprocess.run(["umount", str(full)], check=True)


def hook(port: int) -> dict:
    return {"kind": "webhook", "url": f"http://127.0.0.1:{port}/", "timeout": "200ms"}


@pytest.fixture(autouse=True)
def unharmed(nodes):
    """After each test: both daemons live, no defect was met, packets flow."""
    yield
    a, b = nodes
    for node in (a, b):
        status = node.status()
        assert status["other"]["internal_errors"] == 0
        assert status["other"]["policy_errors"] == 0
        assert status["worker_restarts"] == 0
        assert "Traceback" not in node.log.read_text()
    with a.socket(4) as sender, b.socket(4) as receiver:
        assert answered(sender, receiver, seconds=3)


def test_sprayed_packets(nodes):
    """Invariants 1 and 4: 3,000 random and mutated packets, absent = drop: nothing that was not ours is delivered."""
    a, b = nodes
    seeded = random.Random(7)  # noqa: S311 (the same packets on every run)
    seeds = captured(a, b)
    assert len(seeds) >= 4
    ends = [listening(b, v, kind) for v in (4, 6) for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW)]
    out = a.host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    macs = [node.host.out("cat", f"/sys/class/net/{node.host.interfaces[0]}/address").strip() for node in (b, a)]
    ethernet = b"".join(bytes.fromhex(m.replace(":", "")) for m in macs)
    with out:
        out.bind((a.host.interfaces[0], 0))
        for _ in range(3000):
            packet = mutated(seeded, seeded.choice(seeds))
            kind = b"\x08\x00" if packet[:1] and packet[0] >> 4 != 6 else b"\x86\xdd"
            out.send(ethernet + kind + packet[:1480])
    until(lambda: sum(b.status()["rejected"].values()) > 500, "they are refused and counted")
    for end in ends:
        end.settimeout(0)
        with end, pytest.raises(BlockingIOError):
            end.recv(2000)


def listening(b: Node, version: int, kind: int) -> socket.socket:
    """A socket that would hear what is sprayed: UDP on the seeds' port, or raw with the seeds' odd protocol."""
    made = b.socket(version, kind, 0 if kind == socket.SOCK_DGRAM else 253, bind=False)
    made.bind((b.address(version), 7777 if kind == socket.SOCK_DGRAM else 0))
    return made


def captured(a: Node, b: Node) -> list[bytes]:
    """Scented packets, their tags wrong: what an attacker has who saw some and may not repeat them."""
    seeds = []
    with b.capture() as wire:
        for version in (4, 6):
            with a.socket(version) as sender, a.socket(version, socket.SOCK_RAW, 253) as raw:
                for _ in range(3):
                    sender.sendto(b"seed", (b.address(version), 7777))
                    raw.sendto(b"seed", (b.address(version), 0))
        until(lambda: seeds.extend(p for p in wire.packets() if b"seed" in p) or len(seeds) >= 12, "seeds")
    return [forge.bent(p, ip.parse(p).scent_at + 33, p[ip.parse(p).scent_at + 33] ^ 0x55) for p in seeds]


def mutated(seeded: random.Random, packet: bytes) -> bytes:
    """Random bytes, or a packet with some bytes of its headers changed, cut, or lengthened, lengths mended or not."""
    if seeded.random() < 0.2:
        return bytes((seeded.choice((0x45, 0x4F, 0x60, seeded.randrange(256))),)) + seeded.randbytes(
            seeded.randrange(200)
        )
    made = bytearray(packet)
    for _ in range(seeded.randrange(4)):
        at = seeded.randrange(len(made))
        if ip.parse(packet).scent_at + layout.SCENT_TAG_AT <= at < ip.parse(packet).scent_at + layout.LEN:
            continue
        made[at] = seeded.randrange(256)
    if seeded.random() < 0.3:
        del made[seeded.randrange(len(made)) :]
    if made and made[0] >> 4 == 4 and len(made) >= 20:
        size = min(max((made[0] & 15) * 4, 20), len(made) // 2 * 2)
        made[2:4] = struct.pack(">H", len(made))
        made[10:12] = b"\0\0"
        made[10:12] = struct.pack(">H", ip.checksum(bytes(made[:size])))
    elif len(made) >= 40:
        made[4:6] = struct.pack(">H", len(made) - 40)
    return bytes(made)


def test_an_eve_line_of_10_megabytes(nodes):
    """It is left out and counted; the alert behind it is read."""
    a, _ = nodes
    before = a.status()["networks"][0]["collectors"]
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(a.eve))
        end.sendall(b'{"event_type": "alert", "payload": "' + b"A" * (10 << 20) + b'"}\n' + b"\0\xff{[\n" * 100)
    a.alarm(a.host.ipv4)
    after = until(lambda: changed(a, before, "eve_too_long"), "it is counted")
    assert after["eve_too_long"] == before["eve_too_long"] + 1
    until(lambda: a.status()["networks"][0]["affected"] == [a.host.ipv4], "the alert is read")


def changed(node: Node, before: dict, name: str) -> dict | None:
    now = node.status()["networks"][0]["collectors"]
    return now if now[name] != before[name] else None


def test_a_prometheus_page_with_nan_and_inf(nodes):
    """Only the finite value counts."""
    _, b = nodes
    levels = until(lambda: (v := b.status()["networks"][0]["levels"]) and "request_load" in v and v, "a level")
    assert levels["request_load"] == pytest.approx(0.4, abs=0.02)


def test_a_full_disk(nodes):
    """Invariant 6: decisions that cannot be written are kept until they can; the datapath goes on."""
    _, b = nodes
    until(lambda: b.status()["actuators"]["history_errors"], "the history cannot be written")
    assert b.status()["actuators"]["history_waiting"]
    assert "disk" in b.log.read_text()
    (b.directory / "full" / "filler").unlink()
    b.reload()
    until(lambda: b.status()["actuators"]["history_written"], "it is written when there is room")


@pytest.mark.parametrize(
    "request_",
    [b"", b"\n", b"\0" * 100 + b"\n", b"\xff\xfe\n", b"[" * 4000 + b"\n", b"x" * 100_000, b'{"command": 7}\n', b"{}\n",
     b'{"command": "explain", "peer": "nobody"}\n', b'{"command": "explain", "peer": "a", "limit": -5}\n',
     b'{"command": "status", "more": 1}\n', b'{"command": "\xff"}\n', b'{"command": "stop"}\n', b'{"command"'],
    ids=lambda r: repr(r[:20]),
)  # fmt: skip
def test_garbage_on_the_control_socket(nodes, request_):
    _, b = nodes
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(5)
        end.connect(str(b.control))
        end.sendall(request_)
        end.shutdown(socket.SHUT_WR)
        try:
            answer = b"".join(iter(lambda: end.recv(65536), b""))
        except ConnectionResetError:
            return  # it hung up with what we sent unread
    if b'"explain", "peer": "a"' in request_:
        assert json.loads(answer)["peer"] == "a"
    else:
        assert "error" in json.loads(answer)


def test_the_control_socket_is_for_root(nodes):
    _, b = nodes
    assert stat.S_IMODE(b.control.stat().st_mode) == 0o600


def test_more_clients_than_allowed(nodes):
    """40 silent clients: the rest is refused, and status answers again when they have gone."""
    _, b = nodes
    ends = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for end in ends:
        end.connect(str(b.control))
    for end in ends:
        end.close()
    until(lambda: answers(b), "it answers")


def answers(node: Node) -> bool:
    with suppress(ScentdError):
        return bool(node.status()["workers"])
    return False


def test_a_policy_or_webhook_that_fails_does_not_stop_anything(nodes):
    """Invariant 6: the webhook answers 501 to POST all the while."""
    _, b = nodes
    until(lambda: any(v for k, v in b.status()["actuators"].items() if "fail" in k or "error" in k), "failures count")


# -- what keeps a daemon from starting -------------------------------------------------------------------------


def refused(node: Node, *words: str) -> None:
    """`scentd run` ends at once with a message that has these words, and without a traceback."""
    node.write()
    done = node.cli("run")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def third(nodes, tmp_path):
    """A node on a's host that has never run."""
    a, b = nodes
    made = Node(a.host, tmp_path)
    made.peers = [peer_of(b)]
    return made


def test_key_files(third):
    third.key_file.chmod(0o644)
    refused(third, "chmod 0600", "network[0].key_file")
    third.key_file.chmod(0o600)
    third.key_file.write_bytes(os.urandom(64))
    refused(third, "scentd keygen", "network[0].key_file")
    third.key_file.unlink()
    refused(third, "No such file", "umask 077")


def test_state_dir_not_writable(third):
    third.sections["daemon"] = {"state_dir": "/proc/nothing"}
    refused(third, "daemon.state_dir /proc/nothing")
    third.sections["daemon"] = {"state_dir": str(third.key_file)}
    refused(third, f"daemon.state_dir {third.key_file}")


def test_control_socket_in_the_way(third):
    third.control.write_text("not a socket")
    refused(third, "is not a socket is in the way")


def test_the_point_of_low_order_is_no_key(third):
    import base64

    third.peers[0]["public_key"] = base64.b64encode(bytes(64)).decode()
    refused(third, "peer[0].public_key", "low order")


def test_ten_mistakes_are_told_at_once(third):
    third.network |= {"interval": "99 s", "low": 0.9, "high": 0.1, "labels": ["x"], "weights": {"nope": 1}, "steps": 3}
    third.sections["verify"] = {"max_age": 60, "absent": "ignore"}
    third.sections["datapath"] = {"workers": 0, "mark_stamped": 0, "nonsense": True}
    third.write()
    done = scentd("check-config", "--config", str(third.config))
    assert done.returncode == 2
    for path in ("network[0].interval", "network[0].low", "network[0].labels[0]", "network[0].weights.nope",
                 "network[0].steps", "verify.max_age", "verify.absent", "datapath.workers", "datapath.mark_stamped",
                 "datapath.nonsense"):  # fmt: skip
        assert path in done.stderr


def test_signals_in_any_order_end_well(nodes, tmp_path):
    """TERM while it starts, HUP before it is ready: it ends, and leaves nothing."""
    with pair("sg", tmp_path) as (a, _):
        a.write()
        for wait in (0.8, 1.2):
            a.launch()
            until(lambda: a.control.exists(), "it listens")
            a.signal(signal.SIGHUP)
            threading.Event().wait(wait - 0.8)
            assert a.end(signal.SIGTERM) == 0
            assert "SCENTD" not in a.host.out("iptables-save")
            assert "Traceback" not in a.log.read_text(), a.log.read_text()
