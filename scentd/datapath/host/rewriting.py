"""What on this host rewrites packets behind the queue, and how many packets left without a scent for it."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

from scentd.datapath.host.rewritten import COUNTED, Rewrites
from scentd.datapath.host.selection import NAME
from scentd.errors import HostError
from scentd.system import nft
from scentd.system.nft import Nftables

LEGACY = ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")


def read() -> Rewrites:
    """Raises HostError."""
    return Rewrites(nat=has_legacy_nat() or has_nft_nat())


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


def counts() -> Counter[str]:
    """Packets that left without a scent because their source was rewritten, by the peer's address. Raises HostError."""
    found: Counter[str] = Counter()
    with closing(Nftables()) as tables:
        for name in COUNTED:
            for element in tables.elements(NAME, name):
                found[element["elem"]["val"]] += element["elem"]["counter"]["packets"]
    return found
