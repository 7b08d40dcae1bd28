"""The programs with a peer and a network that change their keys: as tests/core/packet/test_verify_keys.py."""

from __future__ import annotations

import pytest
import two_keys
import wire_setup
from bpf_programs import Kernel
from two_keys import ENDS, PAIR, key_ids, packets

from scentd.wire import ip, layout, maps

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])
NOW = wire_setup.NOW


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


@BOTH
@pytest.mark.parametrize("ends", ENDS)
def test_any_of_the_keys(kernel, version, ends):
    kernel.verify_by(two_keys.table())
    ran = kernel.verify_all((packet, NOW) for packet in packets(version, *ends, wire_setup.EPOCH))
    assert [r.counts for r in ran] == [{"accepted": 1}] * 10
    began, whole = (e for r in ran for e in r.events)
    assert (began.kind, whole.kind) == (maps.EVENT_EPOCH, maps.EVENT_PROFILE)
    assert began.key_ids == whole.key_ids == key_ids(*ends)
    assert whole.sealed == b"".join(two_keys.outgoing(*ends, wire_setup.EPOCH).fragments)
    assert kernel.states()[PAIR].key_ids == key_ids(*ends)


@BOTH
def test_keys_that_nobody_has_configured(kernel, version):
    kernel.verify_by(two_keys.table(alice=1, bob=1))
    kernel.fresh_verifier()
    wanted = {(0, 0): "accepted", (0, 1): "bad-tag:drop", (1, 0): "unknown-key:drop", (1, 1): "unknown-key:drop"}
    for n, (ends, name) in enumerate(wanted.items()):
        [packet] = packets(version, *ends, wire_setup.EPOCH - 5 + n, 1)
        assert kernel.verify(packet, NOW).counts == {name: 1}


@BOTH
def test_epochs_go_up_over_all_keys(kernel, version):
    kernel.verify_by(two_keys.table())
    steps = [(packets(version, *ends, wire_setup.EPOCH - 8 + 2 * n, 1)[0], NOW) for n, ends in enumerate(ENDS)]
    steps += [(packets(version, *ends, wire_setup.EPOCH - 9 + 2 * n, 1)[0], NOW + 5) for n, ends in enumerate(ENDS)]
    ran = kernel.verify_all(steps)
    judged = [{outcome: n for outcome, n in r.counts.items() if outcome != "duplicate_issuer"} for r in ran]
    assert judged == [{"accepted": 1}] * 4 + [{"replayed-epoch:drop": 1}] * 4


def test_an_epoch_has_the_fragments_of_its_first_keys(kernel):
    kernel.verify_by(two_keys.table())
    first, other = packets(4, 0, 0, wire_setup.EPOCH), packets(4, 0, 1, wire_setup.EPOCH)
    ran = kernel.verify_all((packet, NOW) for packet in (*first[:3], *other, *first))
    assert all(r.counts == {"accepted": 1} for r in ran)
    assert [e.key_ids for r in ran for e in r.events] == [key_ids(0, 0)] * 2
    state = kernel.states()[PAIR]
    assert (state.key_ids, state.seen) == (key_ids(0, 0), (1 << layout.FRAGMENTS) - 1)
    assert state.sealed == b"".join(two_keys.outgoing(0, 0, wire_setup.EPOCH).fragments)


@BOTH
def test_either_key_whichever_fitted_last(kernel, version):
    """In the caches, too: the same addresses, the other key, and back."""
    kernel.verify_by(two_keys.table())
    order = (0, 1, 1, 0, 1, 0, 0)
    steps = [(p, NOW) for n, bob in enumerate(order) for p in packets(version, 0, bob, wire_setup.EPOCH - 9 + n, 3)]
    assert [r.counts for r in kernel.verify_all(steps)] == [{"accepted": 1}] * len(steps)
    forged = bytearray(packets(version, 0, 1, wire_setup.EPOCH, 1)[0])
    forged[ip.parse(bytes(forged)).scent_at + layout.LEN - 1] ^= 1
    assert kernel.verify(bytes(forged), NOW).counts == {"bad-tag:drop": 1}
