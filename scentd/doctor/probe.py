"""Tries the kernel's side of every part, in a network namespace of its own that ends with the process.

    python -P -m scentd.doctor.probe     enters a new network namespace; one finding a line, as JSON

Each probe uses the module that the daemon uses, so what works in a probe works in the daemon. Nothing of the
host's own network is changed. Needs root (CAP_SYS_ADMIN for the namespace, CAP_NET_ADMIN).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from scentd.errors import HostError
from scentd.system import debian

CLONE_NEWNET = 0x40000000  # linux/sched.h
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 8 << 20  # bytes; what a queue of 4096 packets asks for
QUEUE = 22600
TIMEOUT = 10.0
LOOPBACK = 1  # interface index of `lo` in every network namespace
OBJECTS = tuple(
    Path(__file__).parent.parent / "datapath" / "offload" / name for name in ("stamp.bpf.o", "verify.bpf.o")
)

Ok = Literal["yes", "no", "warning"]
Finding = tuple[str, Ok, str, str]  # name, ok, what was found, the way out

# Matches and targets of datapath/host/rules.py, each in a rule of its own: extension -> (families, table, rule).
EXTENSIONS: dict[str, tuple[tuple[int, ...], str, str]] = {
    "mark": ((4, 6), "security", "-m mark --mark 0x10000000/0x10000000"),
    "icmp": ((4,), "raw", "-p icmp -m icmp --icmp-type 3/4"),
    "icmp6": ((6,), "raw", "-p ipv6-icmp -m icmp6 --icmpv6-type 2"),
    "length": ((6,), "raw", "-m length --length 1501:65535"),
    "NFQUEUE": ((4, 6), "raw", "-j NFQUEUE --queue-balance 22600:22601 --queue-bypass"),
}
MODULES = {"icmp": "ip_tables", "icmp6": "ip6_tables"}
KERNEL = "use a kernel with {} (all of Debian's have it; modprobe, or the host's kernel if this is a container)"


def findings() -> Iterator[Finding]:
    """Every probe's finding, in the namespace that this process is in. Raises nothing."""
    yield bring_up()
    for name, probe in PROBES.items():
        yield run_probe(name, probe)


def run_probe(name: str, probe: Callable[[], Finding]) -> Finding:
    """Run a probe and turn its error, which names what is missing, into a finding."""
    try:
        return probe()
    except HostError as error:
        return name, "no", str(error), KERNEL.format("what it names")
    except ImportError as error:
        return name, "no", f"{error}", debian.way_out(str(error))
    except Exception as error:  # any library may raise when the kernel refuses
        return name, "no", f"{type(error).__name__}: {error}", "run as root, on a kernel with this feature"


def bring_up() -> Finding:
    """Set `lo` up: the queue's probe sends a packet to this host itself."""
    from pyroute2 import IPRoute

    def up() -> Finding:
        with IPRoute() as ip:
            ip.link("set", index=LOOPBACK, state="up")
        return "network namespace", "yes", "made one, lo is up", ""

    return run_probe("network namespace", up)


def nfqueue() -> Finding:
    """Bind a queue and see a packet of our own come through it."""
    from scentd.datapath.queue.nfqueue import Queue

    seen: list[int] = []

    def accept(packet: Any) -> None:
        seen.append(packet.get_payload_len())
        packet.accept()

    rule = f"OUTPUT -o lo -p udp --dport 9 -j NFQUEUE --queue-num {QUEUE}"
    queue = Queue(QUEUE, accept, 64)
    try:
        restore("iptables", "mangle", f"-A {rule}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"scentd", ("127.0.0.1", 9))
        queue.run()
        restore("iptables", "mangle", f"-D {rule}")
    finally:
        queue.close()
    if seen != [34]:
        return "NFQUEUE", "no", "bound, but no packet came", KERNEL.format("NFNETLINK_QUEUE and xt_NFQUEUE")
    return "NFQUEUE", "yes", "bound, and a packet came through", ""


def restore(program: str, table: str, *lines: str) -> None:
    """Load rules. Raises HostError."""
    from scentd.datapath.host import iptables

    text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
    iptables.run([f"{program}-restore", "--noflush", *iptables.WAIT], text)


def iptables(family: int) -> Finding:
    """Try each match and target of our rules by itself, to name all missing ones at once."""
    name, program = f"iptables, IPv{family}", "iptables" if family == 4 else "ip6tables"
    try:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        return name, "no", f"{program} not found", debian.install(program)
    wanted = {e: entry for e, entry in EXTENSIONS.items() if family in entry[0]}
    missing: dict[str, str] = {}
    for extension, (_, table, rule) in wanted.items():
        try:
            restore(program, table, f"-A OUTPUT {rule}", f"-D OUTPUT {rule}")
        except HostError as error:
            missing[extension] = str(error)
    found = f"{version.stdout.strip()}; {len(wanted) - len(missing)} of {len(wanted)} matches and targets"
    if missing:
        modules = ", ".join(MODULES.get(m, f"xt_{m}") for m in missing)
        return name, "no", f"{found}; not {'; '.join(missing.values())}", KERNEL.format(modules)
    return name, "yes", f"{found}: {', '.join(wanted)}", ""


def redirect_rules() -> Finding:
    """Install and remove the whole rule set of a gateway with one peer, as the daemon does."""
    from scentd.core.offload.coverage import Coverage
    from scentd.datapath.family import families
    from scentd.datapath.host import iptables, path_table, rewritten, rules, selection

    sample = sample_config()
    want = selection.select(sample, Coverage(stamping=("lo",)), rewritten.Rewrites(nat=True))
    rules.apply(sample)
    path_table.apply(want)
    installed = sum(
        len(iptables.own_lines(lines)) for family in families() for lines in iptables.read_tables(family).values()
    )
    kept = path_table.is_applied(want)
    path_table.remove()
    rules.remove()
    if not kept:
        return "redirect rules", "no", "nftables did not keep our table as it was written", KERNEL.format("NF_TABLES")
    found = f"{len(want.rules)} rules of nftables and {installed} lines of iptables loaded and removed"
    return "redirect rules", "yes", found, ""


def sample_config() -> Any:
    """A configuration that needs every kind of rule there is."""
    from scentd.config.sections import Config, Datapath, Network, Peer, Stamp, Verify

    key = "A" * 86 + "=="
    peer = Peer(name="peer", public_key=key, addresses=["192.0.2.0/24", "2001:db8::/64"], rejected="reject")
    prefixes = ["198.51.100.0/24", "2001:db8:1::/64"]
    network = Network(name="network", key_file="", addresses=prefixes, stamp=True)
    whole_host = Network(name="host", key_file="")
    return Config(
        datapath=Datapath(workers=2),
        stamp=Stamp(forwarded=True),
        verify=Verify(absent="drop"),
        network=[network, whole_host],
        peer=[peer],
    )


def nftables() -> Finding:
    """libnftables, and a set whose elements end by themselves."""
    from scentd.act.quarantine import QuarantineTable

    quarantine = QuarantineTable()
    wanted = {ip_network("192.0.2.1/32"): 60.0, ip_network("2001:db8::1/128"): 60.0}
    quarantine.quarantine(wanted)
    have = quarantine.read()
    quarantine.remove()
    quarantine.close()
    if have.keys() != wanted.keys() or not all(0 < left <= 60 for left in have.values()):
        return "nftables", "no", f"sets lost their elements: {have}", KERNEL.format("NF_TABLES, sets with timeouts")
    return "nftables", "yes", "libnftables; sets with timeouts", ""


def htb() -> Finding:
    from scentd.act.actuator import Tally
    from scentd.act.resources.backend import BackendSetting
    from scentd.act.resources.bandwidth import BandwidthBackend, BandwidthResource

    prefixes = ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")
    setting = BackendSetting(peers={"probe": prefixes}, directory=Path("/nonexistent"), tally=Tally())
    resource = BandwidthResource(name="probe", interface="lo", link=1e9, maximum=1e9)
    backend = BandwidthBackend(resource, setting)
    backend.change("probe", 1e8)
    rates = backend.observe()
    backend.close()
    backend.remove_all()
    if rates != {"probe": 1e8}:
        return "HTB", "no", f"the rate was not kept: {rates}", KERNEL.format("sch_htb and cls_u32")
    return "HTB", "yes", "qdisc, class and u32 filters", ""


def ip_rule() -> Finding:
    """Rules by packet mark and with a goto, both families, as datapath/host/routes.py makes them."""
    from scentd.config.sections import Datapath
    from scentd.core import mirrored_rules
    from scentd.datapath.family import families
    from scentd.datapath.host.ip_rules import BlockWriter, rule_socket

    datapath = Datapath()
    with rule_socket() as rules:
        for version in families():
            host = rules.read(version)[0]
            place = mirrored_rules.place(host, datapath.rule_priority)
            if place is None:
                return "ip rule", "no", f"IPv{version}: no place among {len(host)} rules", KERNEL.format("FIB rules")
            tables = dict.fromkeys(mirrored_rules.lookups(host, version), datapath.route_table)
            settings = mirrored_rules.Settings(datapath.mark_stamped)
            want = mirrored_rules.block(version, mirrored_rules.behind(host, place), place, tables, settings)
            BlockWriter(rules, version, (), want).advance()
            have = rules.read(version)[1]
            BlockWriter(rules, version, have, mirrored_rules.Block()).retreat(())
            if set(have) != {*want.frame, *want.mirrored}:
                return "ip rule", "no", f"IPv{version}: other rules than asked for", KERNEL.format("FIB rules")
    return "ip rule", "yes", "fwmark, goto and iif rules", ""


def receive_buffer() -> Finding:
    """SO_RCVBUFFORCE ignores net.core.rmem_max; with a smaller buffer a busy queue loses packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        got = end.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it, socket(7)
    if got < RECEIVE_BUFFER:
        return "receive buffer", "warning", f"{got >> 10} KiB", f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}"
    return "receive buffer", "yes", f"{got >> 10} KiB granted", ""


def offload() -> Finding:
    """Have the kernel verify the BPF programs, and attach one. A host without them has the queues."""
    missing = ", ".join(str(path) for path in OBJECTS if not path.exists())
    if missing:
        return "offload", "warning", f"not there: {missing}", "make -C bpf in a checkout, or install scentd anew"
    try:
        mechanism = load_and_attach()
    except HostError as error:
        return "offload", "warning", str(error), "mend what it names; until then the queues do everything"
    return "offload", "yes", f"BPF programs loaded, attached with {mechanism}", ""


def load_and_attach() -> str:
    """Attach the stamper to `lo` and detach it again. Return "tcx" or "clsact". Raises HostError."""
    from scentd.datapath.offload import attach, bpfprog, clsact, tcx
    from scentd.datapath.offload.libbpf import BpfError, Object

    with Object(str(OBJECTS[0])) as stamp, Object(str(OBJECTS[1])) as verify:
        stamp.load()
        verify.load()
        program = stamp.program_fd(stamp.programs()[0])
        try:
            os.close(bpfprog.link_create(program, LOOPBACK, tcx.TYPES["egress"]))
            return "tcx"
        except BpfError as error:
            if error.code not in attach.NO_TCX:
                raise
        clsact.attach(LOOPBACK, "egress", program)
        clsact.detach(LOOPBACK, "egress")
    return "clsact"


PROBES: dict[str, Callable[[], Finding]] = {
    "NFQUEUE": nfqueue,
    "iptables, IPv4": lambda: iptables(4),
    **({"iptables, IPv6": lambda: iptables(6)} if Path("/proc/sys/net/ipv6").exists() else {}),
    "redirect rules": redirect_rules,
    "ip rule": ip_rule,
    "nftables": nftables,
    "HTB": htb,
    "receive buffer": receive_buffer,
    "offload": offload,
}


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        way_out = "run as root" if code == errno.EPERM else KERNEL.format("NET_NS")
        found = f"cannot make one: {os.strerror(code)}; the rest was not tried"
        print(json.dumps(["network namespace", "no", found, way_out]))
        return 1
    for finding in findings():
        print(json.dumps(finding), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
