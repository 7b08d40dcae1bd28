import pytest
import wire_setup
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import quick

from scentd.wire import layout, profile
from scentd.wire.keys import PairKeys

ALICE = wire_setup.IDENTITIES["alice"]
KEY = bytes(range(32))
KEYS = PairKeys(bytes(16), bytes(16), KEY, KEY[::-1])
OTHER_KEYS = PairKeys(bytes(16), bytes(16), KEY[1:] + KEY[:1], KEY[:1] + KEY[:0:-1])
level = st.floats(0, 1)


def test_chacha20_is_rfc_8439s():
    """Section 2.4.2, and that `chacha` counts from block 0."""
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    text += b"sunscreen would be it."
    nonce = bytes.fromhex("01000000000000000000004a00000000")
    assert (
        Cipher(ChaCha20(KEY, nonce), None).encryptor().update(text).hex().startswith("6e2e359a2568f98041ba0728dd0d6981")
    )
    stream = Cipher(ChaCha20(KEY, bytes(12) + b"\x01\x02\x03\x04"), None).encryptor().update(bytes(130))
    assert profile.chacha(KEY, bytes(8) + b"\x01\x02\x03\x04", bytes(130)) == stream


def test_two_profiles_of_one_epoch_tell_nothing_of_each_other():
    """A cloned machine: each sealed byte of the one is as good as independent of the other's."""
    sealed = [profile.seal(KEYS, profile.sign(ALICE.signer, body_of(level / 250))) for level in range(200)]
    for i in range(layout.PROFILE_LEN):
        assert len({one[i] for one in sealed}) > 80, f"byte {i} repeats"
    assert sealed[5] == profile.seal(KEYS, profile.sign(ALICE.signer, body_of(5 / 250))), "the same one twice"


def test_two_peers_profiles_tell_nobody_whether_they_are_the_same():
    """Of two machines with one key, too: what hides R differs with R, so the difference of both is no constant."""

    def differences(first: int, second: int) -> set[bytes]:
        pairs = (KEYS, OTHER_KEYS)
        made = [profile.sign(ALICE.signer, body_of(level / 250)) for level in (first, second)]
        sealed = [[profile.seal(keys, one)[:32] for one in made] for keys in pairs]
        return {bytes(a ^ b for a, b in zip(*both, strict=True)) for both in sealed}

    assert len(differences(1, 2)) == 2
    assert differences(1, 1) == {bytes(32)}


def body_of(level: float) -> bytes:
    return profile.encode_body(ALICE.public.key_id, 7, 5, 0.5, {0: level}, bytes(32))


@quick
@given(
    st.integers(1, 60),
    st.none() | level,
    st.dictionaries(st.integers(0, 21), level),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.integers(0, layout.LAG_MAX),
)
def test_what_is_signed_and_sealed_opens_as_it_was(interval, overall, levels, bloom, epoch, lag):
    key_id = ALICE.public.key_id
    body = profile.encode_body(key_id, epoch, interval, overall, levels, bloom, lag)
    sealed = profile.seal(KEYS, profile.sign(ALICE.signer, body))
    opened = profile.open_sealed(b"".join(profile.fragments(sealed)), KEYS, ALICE.public.verifier(), key_id, epoch)
    assert (opened.interval, opened.bloom, opened.epoch, opened.lag) == (interval, bloom, epoch, lag)
    assert opened.levels == pytest.approx(levels, abs=0.00201)
    assert opened.overall == (None if overall is None else pytest.approx(overall, abs=0.00201))


@quick
@given(st.integers(0, 130 * 8 - 1))
def test_any_bit_of_a_sealed_profile_counts(bit):
    """Invariant 1: nothing of a profile is decoded before its signature holds."""
    body = profile.encode_body(ALICE.public.key_id, 7, 5, 0.5, {0: 0.5}, bytes(32))
    sealed = bytearray(profile.seal(KEYS, profile.sign(ALICE.signer, body)))
    sealed[bit // 8] ^= 1 << bit % 8
    opened = profile.open_sealed(bytes(sealed), KEYS, ALICE.public.verifier(), ALICE.public.key_id, 7)
    assert opened == layout.PROFILE_ERROR_SIGNATURE


@quick
@given(st.binary(max_size=140))
def test_arbitrary_bytes_never_raise(data):
    opened = profile.open_sealed(data, KEYS, ALICE.public.verifier(), ALICE.public.key_id, 7)
    assert opened in (layout.PROFILE_ERROR_LENGTH, layout.PROFILE_ERROR_SIGNATURE)


@quick
@given(st.binary(min_size=66, max_size=66))
def test_decoding_any_signed_body_never_raises(body):
    """A peer that is authentic may still be hostile."""
    made = profile.decode_body(body, body[1:5], int.from_bytes(body[5:9], "big"))
    if isinstance(made, profile.Body):
        assert all(0 <= v <= 1 for v in made.levels.values())
        assert 0 <= made.lag <= layout.LAG_MAX
    else:
        assert made in layout.PROFILE_ERRORS


def test_a_body_without_a_lag_is_what_it_was():
    body = profile.encode_body(b"abcd", 1, 5, None, {}, bytes(32))
    assert body[33] == 0
    for lag in (1, 55):
        assert profile.encode_body(b"abcd", 1, 5, None, {}, bytes(32), lag) == body[:33] + bytes((lag,)) + body[34:]


def test_levels_are_250_steps_and_255_is_unknown():
    body = profile.encode_body(b"abcd", 1, 5, None, {0: 0.0, 1: 1.0, 2: 0.5019, 3: 0.502}, bytes(32))
    assert list(body[10:16]) == [255, 0, 250, 125, 126, 255]
    opened = profile.decode_body(body, b"abcd", 1)
    assert opened.levels == {0: 0.0, 1: 1.0, 2: 0.5, 3: 0.504}
