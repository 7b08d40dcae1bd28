"""What a stamper takes of a profiler: signed batches of profiles that their networks have signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from scentd.core.fleet import batch
from scentd.core.fleet.batch import BATCH_MAX, OUTGOING_SIZE, Batch, Sent, SentEpoch
from scentd.core.profile.issue import IssuedPair, Issuer, metric_slots
from scentd.model import IssuedEpoch, Statement
from scentd.wire import keys

NET, PEER, PROFILER, EVE = (keys.identity(bytes((n,)) * 32) for n in (1, 2, 3, 4))
EPOCH = 1_800_000_005
STATEMENT = Statement(5, 0.5, {"cpu": 0.9}, frozenset(("region=eu-west",)))


def sent(network=NET, name="acme", epoch=EPOCH) -> SentEpoch:
    pair = IssuedPair(name, "peer", network, PEER.public)
    [out] = Issuer(network, [pair], metric_slots({})).issue(STATEMENT, epoch)
    own = pair.keys_at(epoch)
    return SentEpoch(name, epoch, 5.0, False, (Sent(out, own.seal, own.nonce),))


def made(*epochs: SentEpoch) -> Batch:
    return Batch("profiler", "p1-1", 7, "g1", 0, 1, EPOCH + 1.0, epochs)


def test_a_batch_arrives_as_it_was_signed():
    signed = batch.sign(PROFILER, made(sent()))
    found = batch.verified(signed, PROFILER.public)
    assert found == made(sent())
    assert batch.checked(found.epochs[0], [NET.public]) == IssuedEpoch(
        "acme", EPOCH, 5.0, False, (sent().outgoing[0].outgoing,)
    )


def test_nobody_else_signs_batches():
    assert batch.verified(batch.sign(EVE, made()), PROFILER.public) == "wrong_signature"
    assert batch.verified(b"", PROFILER.public) == "wrong_signature"
    odd = PROFILER.signer.sign(batch.LABEL + b"odd") + b"odd"
    assert batch.verified(odd, PROFILER.public) == "garbage"


@given(st.integers(0), st.integers(1, 255))
def test_no_byte_of_a_batch_can_be_changed(place, difference):
    signed = bytearray(batch.sign(PROFILER, made()))
    signed[place % len(signed)] ^= difference
    assert batch.verified(bytes(signed), PROFILER.public) == "wrong_signature"


def test_a_profile_that_the_network_has_not_signed_is_not_stamped():
    assert batch.checked(sent(EVE), [NET.public]) is None
    assert batch.checked(sent(EVE), [NET.public, EVE.public]) is not None, "the next key counts, too"
    assert batch.checked(sent(), []) is None


@pytest.mark.parametrize(
    "change",
    [
        {"network": "other"},
        {"epoch": EPOCH + 1},
        {"tag_key": b"short"},
        {"glances": b""},
        {"fragments": ()},
        {"fragments": (bytes(13),) * 10},
        {"key_id": b"none"},
    ],
    ids=str,
)
def test_a_profiler_that_errs_makes_a_stamper_stamp_nothing_of_it(change):
    good = sent()
    [one] = good.outgoing
    assert (
        batch.checked(replace(good, outgoing=(replace(one, outgoing=replace(one.outgoing, **change)),)), [NET.public])
        is None
    )


def test_one_wrong_profile_spoils_its_epoch_alone():
    good, wrong = sent(), sent(EVE)
    both = replace(good, outgoing=(*good.outgoing, *wrong.outgoing))
    assert batch.checked(both, [NET.public]) is None
    assert batch.checked(good, [NET.public]) is not None


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 700), max_size=80))
def test_groups_fit_into_a_message_and_have_everybody_once(sizes):
    groups = batch.grouped(sizes)
    assert [name for group in groups for name in group] == sorted(sizes)
    for group in groups:
        assert len(group) == 1 or sum(OUTGOING_SIZE * sizes[name] for name in group) <= BATCH_MAX


def test_the_size_of_an_outgoing_is_not_underestimated():
    pair = IssuedPair("n" * 63, "p" * 63, NET, PEER.public)
    [out] = Issuer(NET, [pair], metric_slots({})).issue(STATEMENT, EPOCH)
    own = pair.keys_at(EPOCH)
    one = SentEpoch("n" * 63, EPOCH, 5.0, False, (Sent(out, own.seal, own.nonce),))
    assert len(batch.sign(PROFILER, made(one, one))) - len(batch.sign(PROFILER, made(one))) <= 620
    assert len(batch.sign(PROFILER, made(sent(), sent()))) - len(batch.sign(PROFILER, made(sent()))) <= OUTGOING_SIZE
