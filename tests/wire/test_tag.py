import pytest
from siphashc import siphash

from scentd.wire import ip, layout, tag

KEY = bytes(range(16))


def test_siphash_is_the_papers():
    """Aumasson and Bernstein, appendix A: key 00..0f, input 00..0e."""
    assert siphash(KEY, bytes(range(15))) == 0xA129CA6149BE45E5


def test_tag_is_siphash_of_the_documented_bytes_little_endian():
    head = tag.head(layout.FLAG_PORTS, 0x12, b"abcd", 7, 3, b"x" * 13)
    assert head.hex() == "5ce7111261626364000000073a" + "78" * 13
    found = ip.Parsed(4, protocol=6, source=b"\x0a\0\0\1", destination=b"\x0a\0\0\2", ports=b"\0\x50\x01\xbb")
    data = head + b"\x06\0" + b"\0\x50\x01\xbb" + b"\x0a\0\0\1" + b"\x0a\0\0\2"
    assert tag.compute(KEY, head, found) == siphash(KEY, data).to_bytes(8, "little")


def test_sender_bound_tag_covers_the_scent_alone():
    head = tag.head(layout.FLAG_SENDER, 0, b"abcd", 7, 0, bytes(13))
    one = ip.Parsed(4, protocol=6, source=bytes(4), destination=bytes(4), ports=bytes(4))
    other = ip.Parsed(6, protocol=17, source=b"x" * 16, destination=b"y" * 16, ports=b"1234")
    assert (
        tag.compute(KEY, head, one)
        == tag.compute(KEY, head, other)
        == siphash(KEY, head + bytes(6)).to_bytes(8, "little")
    )


@pytest.mark.parametrize("field", ["protocol", "source", "destination", "ports"])
def test_flow_tag_covers_every_field(field):
    head = tag.head(layout.FLAG_PORTS, 0, b"abcd", 7, 0, bytes(13))
    one = ip.Parsed(4, protocol=6, source=bytes(4), destination=bytes(4), ports=bytes(4))
    before = tag.compute(KEY, head, one)
    setattr(one, field, 7 if field == "protocol" else b"\0\0\0\1")
    assert tag.compute(KEY, head, one) != before


@pytest.mark.parametrize(
    ("load", "threat", "byte"), [(0, 0, 0), (1, 1, 0xFF), (0.5, 0.1, 0x82), (0.0333, 0.0334, 0x01)]
)
def test_glance_rounds_half_up(load, threat, byte):
    assert tag.glance(load, threat) == byte
    assert tag.glance_levels(byte) == (int(load * 15 + 0.5) / 15, int(threat * 15 + 0.5) / 15)


def test_glance_mask_differs_by_epoch_index_fragment_and_key():
    def mask(key: bytes = KEY, epoch: int = 7, index: int = 0, fragment: bytes = bytes(13)) -> int:
        return tag.glance_mask(key, tag.head(0, 0x5A, b"abcd", epoch, index, fragment))

    assert len({mask(epoch=e) for e in range(64)}) > 40
    assert len({mask(fragment=bytes((n,)) * 13) for n in range(64)}) > 40
    assert len({mask(index=i) for i in range(10)}) > 6
    assert len({mask(key=bytes((n,)) * 16) for n in range(64)}) > 40
