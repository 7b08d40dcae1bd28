import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scentd.wire import keys

ALICE, BOB, CAROL = (keys.identity(bytes((i,)) * 32) for i in (1, 2, 3))


def test_hkdf_is_rfc_5869s():
    """Appendix A.1 and A.3."""
    ikm = b"\x0b" * 22
    okm = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert keys.hkdf(ikm, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42).hex() == okm
    assert keys.hkdf(ikm, b"", b"", 42).hex()[:32] == "8da4e775a563c18f715f802a063c5a31"
    prk = "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert keys.hkdf_extract(ikm, bytes(range(13))).hex() == prk


def test_ed25519_is_rfc_8032s():
    """Section 7.1, test 1."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signer = Ed25519PrivateKey.from_private_bytes(secret)
    assert signer.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974")


def test_both_ends_derive_the_same_and_nobody_else_does():
    there, here = keys.pair_secret(ALICE, BOB.public), keys.pair_secret(BOB, ALICE.public)
    assert there == here
    assert there != keys.pair_secret(CAROL, BOB.public)


def test_keys_differ_by_direction_period_and_use():
    pair = keys.pair_secret(ALICE, BOB.public)
    made = [
        keys.direction_keys(pair, *ends, period)
        for ends in ((ALICE.public, BOB.public), (BOB.public, ALICE.public))
        for period in (0, 1, 2**32 // 3600)
    ]
    every = [k for m in made for k in (m.tag, m.glance, m.seal, m.seal[:16], m.nonce, m.nonce[:16])]
    assert len(set(every)) == len(every)


def test_periods_change_on_the_hour():
    assert [keys.period_of(e) for e in (0, 3599, 3600)] == [0, 0, 1]


@pytest.mark.parametrize("text", ["", "%%%", "AAAA", base64.b64encode(bytes(63)).decode(), str(ALICE.public) + "\n"])
def test_what_is_not_a_public_key_is_refused_with_a_way_out(text):
    with pytest.raises(ValueError, match="scentd pubkey"):
        keys.parse_public(text)


def test_a_point_of_low_order_is_nobodys_key():
    with pytest.raises(ValueError, match="low order"):
        keys.pair_secret(ALICE, keys.Public(ALICE.public.raw[:32] + bytes(32)))


def test_a_secret_has_32_bytes():
    with pytest.raises(ValueError, match="32"):
        keys.identity(bytes(31))


def test_secrets_are_not_in_a_repr():
    pair = keys.direction_keys(keys.pair_secret(ALICE, BOB.public), ALICE.public, BOB.public, 1)
    assert pair.tag.hex() not in repr(pair)
    assert repr(pair.tag) not in repr(pair)
    assert "signer" not in repr(ALICE)
