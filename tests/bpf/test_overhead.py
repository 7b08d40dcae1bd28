"""The overhead is the pair's: carriers that add other numbers of bytes, in Python and in the stamping program alike."""

from __future__ import annotations

import pytest
import wire_setup
from bpf_programs import UNSPEC, Kernel
from msgspec.structs import replace
from packet_vectors import ip4, ip6, raw, tcp
from wire_strategies import mended

from scentd.core.offload import encode
from scentd.core.packet.stamp import Stamper
from scentd.wire import layout
from scentd.wire.carrier import CARRIERS, NATIVE

pytestmark = pytest.mark.netns

OVERHEADS = {4: 60, 6: 90}
PATH_MTU = 1500
PLAIN = {4: bytes(ip4() / tcp() / raw(0)), 6: bytes(ip6() / tcp() / raw(0))}


@pytest.fixture
def table(monkeypatch):
    """The tables of wire_setup, with carriers that exist in this test alone: as the native ones, and they add more."""
    for version, overhead in OVERHEADS.items():
        wide = type(f"Wide{version}", (type(CARRIERS[NATIVE[version]]),), {"overhead": overhead})
        monkeypatch.setitem(CARRIERS, f"wide{version}", wide())
    pairs = tuple(replace(pair, carrier4="wide4", carrier6="wide6") for pair in wire_setup.STAMP_TABLE.pairs)
    return replace(wire_setup.STAMP_TABLE, pairs=pairs)


@pytest.fixture
def kernel(table):
    made = Kernel()
    made.stamp_by(table)
    pairs = {encode.PAIR.pack(pair.pair): pair for pair in table.pairs}
    made.outgoing = {key: encode.with_flags(value, pairs[key]) for key, value in made.outgoing.items()}
    made.fresh_stamper()
    yield made
    made.close()


def of_length(version: int, length: int) -> bytes:
    return mended(PLAIN[version] + bytes(length - len(PLAIN[version])))


@pytest.mark.parametrize("version", OVERHEADS)
def test_a_packet_is_stamped_where_its_carrier_fits(kernel, version):
    fits = PATH_MTU - OVERHEADS[version]
    ran = kernel.stamp(of_length(version, fits))
    assert (ran.action, ran.counts) == (UNSPEC, {"stamped": 1})
    ran = kernel.stamp(of_length(version, fits + 1))
    assert ran.counts.get("stamped", 0) == 0
    assert ran.packet == of_length(version, fits + 1)


@pytest.mark.parametrize("version", OVERHEADS)
def test_the_queue_says_the_same(table, version):
    stamper = Stamper()
    stamper.configure(table)
    stamper.tick(wire_setup.NOW)
    stamper.update(wire_setup.outgoing())
    fits = PATH_MTU - OVERHEADS[version]
    assert isinstance(stamper.stamp(of_length(version, fits)), bytes)
    assert stamper.stamp(of_length(version, fits + 1)) == layout.UNSTAMPED_TOO_BIG
