"""What on this host rewrites packets behind the queue, and how many packets left without a scent for it."""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from contextlib import closing
from pathlib import Path

from scentd.datapath.host.rewritten import COUNTED, Rewrites
from scentd.datapath.host.selection import NAME
from scentd.errors import HostError
from scentd.system import nft, rtnetlink
from scentd.system.nft import Nftables

NETLINK_XFRM, NLM_F_REQUEST, XFRM_MSG_GETSPDINFO, XFRMA_SPD_INFO = 6, 1, 0x25, 1  # linux/xfrm.h
SPD_INFO = struct.Struct("=II")  # the head of struct xfrmu_spdinfo: policies for what comes, for what leaves
TIMEOUT = 5.0  # seconds
LEGACY = ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")


def read() -> Rewrites:
    """Raises HostError."""
    return Rewrites(nat=has_legacy_nat() or has_nft_nat(), ipsec=policies() > 0)


def differs(known: Rewrites) -> bool:
    """Whether something has changed of which no watch tells. Raises HostError."""
    return (not known.nat and has_legacy_nat()) or (policies() > 0) != known.ipsec


def policies() -> int:
    """How many policies of IPsec this host has for what leaves. Raises HostError."""
    request = struct.pack("=IHHIII", 20, XFRM_MSG_GETSPDINFO, NLM_F_REQUEST, 1, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_XFRM) as end:
            end.settimeout(TIMEOUT)
            end.send(request)
            answer = end.recv(4096)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:  # this kernel has no IPsec
            return 0
        raise HostError(f"IPsec: {error.strerror}; check CAP_NET_ADMIN") from error
    info = rtnetlink.attributes(answer, 20).get(XFRMA_SPD_INFO, b"")  # behind struct nlmsghdr and the flags
    if len(info) < SPD_INFO.size:
        raise HostError("IPsec: the kernel does not tell how many policies it has; check CAP_NET_ADMIN")
    return SPD_INFO.unpack_from(info)[1]


def has_legacy_nat() -> bool:
    """Whether iptables-legacy has a nat table; nobody is told when it appears."""
    for path in map(Path, LEGACY):
        try:
            if "nat" in path.read_text().split():
                return True
        except FileNotFoundError:  # this kernel has no such tables
            pass
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}; run as root") from error
    return False


def has_nft_nat() -> bool:
    """Whether nftables, or the iptables of today in it, has a chain of NAT."""
    if not nft.available():
        return False
    with closing(Nftables()) as tables:
        listed = tables.run([{"list": {"chains": None}}])
    return any(item["chain"].get("type") == "nat" for item in listed if "chain" in item)


def counts() -> Counter[tuple[str, str]]:
    """Packets that left without a scent, by the reason and the peer's address. Raises HostError."""
    found: Counter[tuple[str, str]] = Counter()
    with closing(Nftables()) as tables:
        for name, (reason, _) in COUNTED.items():
            for element in tables.elements(NAME, name):
                found[reason, element["elem"]["val"]] += element["elem"]["counter"]["packets"]
    return found
