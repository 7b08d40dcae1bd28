"""A peer and a network that change their keys: what is accepted, by which tags, and whose fragments it has."""

import pytest
import two_keys
import wire_setup
from two_keys import ENDS, key_ids, packets
from wire_strategies import verdict

from scentd.core.packet import verify
from scentd.wire import layout

BOTH = pytest.mark.parametrize("version", [4, 6])


def events(verifier):
    """(key ids, index) of the fragments since the last call."""
    found = [(e.key_ids, e.index) for e in verifier.events]
    verifier.events.clear()
    return found


@BOTH
@pytest.mark.parametrize("ends", ENDS)
def test_any_of_the_keys(version, ends):
    one = wire_setup.verifier(table=two_keys.table())
    sent = packets(version, *ends, wire_setup.EPOCH)
    assert all(isinstance(one.verify(packet), bytes) for packet in sent)
    assert events(one) == [(key_ids(*ends), index) for index in range(10)]


@BOTH
def test_keys_that_nobody_has_configured(version):
    one = wire_setup.verifier(table=two_keys.table(alice=1, bob=1))
    wanted = {(0, 0): "accepted", (0, 1): "bad-tag", (1, 0): "unknown-key", (1, 1): "unknown-key"}
    for n, (ends, name) in enumerate(wanted.items()):
        [packet] = packets(version, *ends, wire_setup.EPOCH - 5 + n, 1)
        assert layout.VERDICTS[verdict(one.verify(packet))] == name


@BOTH
def test_epochs_go_up_over_all_keys(version):
    """The mark is the peer's, not a key's: an old epoch stays refused, whichever key it has."""
    one = wire_setup.verifier(table=two_keys.table())
    for n, ends in enumerate(ENDS):
        assert isinstance(one.verify(packets(version, *ends, wire_setup.EPOCH - 8 + 2 * n, 1)[0]), bytes)
    one.tick(wire_setup.NOW + 5)
    for n, ends in enumerate(ENDS):
        outcome = one.verify(packets(version, *ends, wire_setup.EPOCH - 9 + 2 * n, 1)[0])
        assert outcome.verdict == layout.VERDICT_REPLAYED_EPOCH


def test_an_epoch_has_the_fragments_of_its_first_keys():
    one = wire_setup.verifier(table=two_keys.table())
    first, other = packets(4, 0, 0, wire_setup.EPOCH), packets(4, 0, 1, wire_setup.EPOCH)
    for packet in (*first[:3], *other, *first):
        assert isinstance(one.verify(packet), bytes)
    assert events(one) == [(key_ids(0, 0), index) for index in range(10)]


def test_two_tags_at_most_and_one_as_a_rule(monkeypatch):
    """The keys of the newest epoch come first."""
    tried = []
    compute = verify.tag.compute
    monkeypatch.setattr(verify.tag, "compute", lambda key, *rest: tried.append(key) or compute(key, *rest))
    one = wire_setup.verifier(table=two_keys.table())
    costs = []
    for n, bob in enumerate((0, 1, 1, 0, 0)):
        sent = packets(4, 0, bob, wire_setup.EPOCH - 8 + n, 3)
        tried.clear()
        assert all(isinstance(one.verify(packet), bytes) for packet in sent)
        costs.append(len(tried))
    assert costs == [3, 4, 3, 4, 3], "one more in the first packet of the other key"
    forged = bytearray(packets(4, 0, 1, wire_setup.EPOCH, 1)[0])
    forged[20 + layout.IPV4_OPTION_LEN - 1] ^= 1
    tried.clear()
    assert one.verify(bytes(forged)).verdict == layout.VERDICT_BAD_TAG
    assert len(tried) == 2


def test_a_pair_keeps_its_state_when_keys_change():
    one = wire_setup.verifier(table=two_keys.table(alice=1, bob=1))
    sent = packets(4, 0, 0, wire_setup.EPOCH)
    for packet in sent[:4]:
        one.verify(packet)
    assert len(events(one)) == 4
    for table in (two_keys.table(), two_keys.table(alice=1)):
        one.configure(table)
        one.verify(sent[0])
        assert events(one) == [], "it has this fragment already"
    one.verify(sent[4])
    assert events(one) == [(key_ids(0, 0), 4)]
