"""Bandwidth of an interface: its link counters over netlink (IFLA_STATS64).

An interface may come and go (a guest's tap): meanwhile each reading fails, and a new one under its name begins anew.
"""

from __future__ import annotations

import time
from typing import Literal

from scentd.collect.rate import Rates
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config.schema import check_positive
from scentd.config.sections import Source
from scentd.config.units import Bits
from scentd.model import Sample

METRICS = {
    "inside": {"rx_bytes": "bandwidth_in", "tx_bytes": "bandwidth_out"},
    "outside": {"rx_bytes": "bandwidth_out", "tx_bytes": "bandwidth_in"},
}


class BandwidthSource(Source, tag_field="kind", tag="bandwidth"):
    """Bits in and out of an interface against its capacity (link counters over netlink)."""

    interface: str
    capacity: Bits  # per second, each way
    seen_from: Literal["inside", "outside"] = "inside"  # outside: the other end of a node's link, a tap or a veth

    def scale(self) -> str:
        return f"{self.capacity:g} bit/s"

    def mistakes(self, path: str) -> list[str]:
        return check_positive(self, path, "capacity")


class BandwidthReader(Reader):
    """Bits per second in and out since the last reading, as a share of the interface's capacity."""

    def __init__(self, source: BandwidthSource, _: Setting) -> None:
        self.name = f"bandwidth_{source.interface}"
        self._source = source
        # The key holds the index: a new interface under an old name has new counters.
        self._rates: Rates[tuple[int, str]] = Rates()

    def read(self, now: float) -> list[Sample]:
        counters = link_counters(self._source.interface)
        rates = self._rates.update(counters, time.monotonic())
        metrics = METRICS[self._source.seen_from]
        return [
            Sample(metrics[counter], min(rate * 8 / self._source.capacity, 1.0), now)
            for (_, counter), rate in rates.items()
        ]


def link_counters(interface: str) -> dict[tuple[int, str], float]:
    """Bytes by (index, "rx_bytes" | "tx_bytes"). Raises CollectError.

    The socket lives for one call (1.3 ms), because each call may come from another thread. pyroute2 is imported
    here, because every program that reads a configuration imports this file.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            (link,) = route.link("get", ifname=interface)
    except NetlinkError as error:
        raise CollectError(
            f'interface {interface}: {error.args[-1]}; see `ip link`, correct `interface` of kind = "bandwidth"'
        ) from None
    except OSError as error:
        raise CollectError(f"interface {interface}: netlink: {error}; allow AF_NETLINK in the unit") from None
    stats = link.get_attr("IFLA_STATS64")
    return {(link["index"], counter): float(stats[counter]) for counter in METRICS["inside"]}
