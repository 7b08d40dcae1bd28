import asyncio
import socket
import time

import pytest
from readings import SETTING

from scentd.collect import bandwidth
from scentd.collect.bandwidth import BandwidthReader, BandwidthSource
from scentd.collect.source import CollectError


def send(size):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(size // 50_000):
            sock.sendto(bytes(50_000), ("127.0.0.1", 9))


def test_bits_per_second_of_an_interface_against_its_capacity():
    source = BandwidthReader(BandwidthSource(interface="lo", capacity=1e12), SETTING)
    assert source.read(1.0) == []
    began = time.monotonic()
    send(5_000_000)
    time.sleep(0.05)
    samples = source.read(2.0)
    elapsed = time.monotonic() - began
    assert [(s.metric, s.at) for s in samples] == [("bandwidth_in", 2.0), ("bandwidth_out", 2.0)]
    assert all(40e6 * 0.9 / elapsed <= s.value * 1e12 < 1e12 for s in samples)


def test_more_than_the_capacity_is_full_load():
    source = BandwidthReader(BandwidthSource(interface="lo", capacity=1.0), SETTING)
    source.read(1.0)
    send(100_000)
    time.sleep(0.02)
    assert [s.value for s in source.read(2.0)] == [1.0, 1.0]


def test_an_interface_that_is_not_there():
    with pytest.raises(CollectError, match=r"interface sc-none: No such device; .*`interface`"):
        bandwidth.link_counters("sc-none")


def test_it_runs_in_a_thread_beside_a_running_loop():
    async def main():
        return await asyncio.to_thread(bandwidth.link_counters, "lo")

    assert {counter for _, counter in asyncio.run(main())} == {"rx_bytes", "tx_bytes"}
