"""Messages between hosts: who is not one of the two ends reads nothing and changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.core.fleet import seal
from scentd.core.fleet.seal import Ends, Kind
from scentd.wire import keys

C, P, G = (keys.identity(bytes((n,)) * 32) for n in (1, 2, 3))
SALT = bytes(range(24))
TO_P = Ends("c", C.public, "p", P.public, keys.pair_secret(C, P.public))
AT_P = TO_P._replace(secret=keys.pair_secret(P, C.public))
MESSAGE = seal.seal(Kind.SAMPLES, TO_P, SALT, b"text")


def unseal(ends, message):
    return seal.unseal(seal.head(message), ends, message)


def test_the_other_end_reads_it():
    assert seal.head(MESSAGE) == (Kind.SAMPLES, "c", "p", 6)
    assert unseal(AT_P, MESSAGE) == b"text"


@pytest.mark.parametrize(
    "ends",
    [
        AT_P._replace(secret=keys.pair_secret(G, C.public)),
        Ends("c", P.public, "p", C.public, AT_P.secret),  # the way back: it is not a mirror
    ],
)
def test_other_ends_do_not(ends):
    assert unseal(ends, MESSAGE) is None


def test_a_message_of_one_kind_is_none_of_another():
    changed = MESSAGE[:1] + bytes((Kind.VIEWS,)) + MESSAGE[2:]
    assert unseal(AT_P, changed) is None


@given(st.integers(0, len(MESSAGE) - 1), st.integers(1, 255))
def test_no_byte_of_it_can_be_changed(place, difference):
    changed = bytearray(MESSAGE)
    changed[place] ^= difference
    head = seal.head(bytes(changed))
    if not isinstance(head, str):
        assert unseal(AT_P, bytes(changed)) is None


@given(st.binary(max_size=200))
def test_any_bytes_have_a_head_or_a_fault(message):
    head = seal.head(message)
    assert head in ("garbage", "version") or isinstance(head, seal.Head)
    if isinstance(head, seal.Head):
        assert unseal(AT_P, message) is None


def test_faults_have_names():
    assert seal.head(b"") == "garbage"
    assert seal.head(b"\x02" + MESSAGE[1:]) == "version"
    assert seal.head(MESSAGE[:40]) == "garbage"
    for place in (2, 3, 4, 5):
        assert seal.head(MESSAGE[:place] + b"\xff" + MESSAGE[place + 1 :]) == "garbage"
    assert seal.head(bytes(seal.MESSAGE_MAX + 1)) == "too_long"


def test_each_salt_has_a_key_of_its_own():
    again = seal.seal(Kind.SAMPLES, TO_P, SALT[::-1], b"text")
    assert again[-20:] != MESSAGE[-20:]
