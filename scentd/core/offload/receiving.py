"""What the verifying program keeps of a pair, as the daemon writes it: struct scent_receiving. Pure."""

from __future__ import annotations

from struct import Struct

from scentd.wire import layout, maps

NUMBER = Struct("=I")


def receiving_entry(epoch: int, before: int, since: int, accepted: int, leapt: int, lag: int) -> bytes:
    """A pair of which the program has nothing of its epoch yet."""
    nothing = (0,) * layout.FRAGMENTS
    return maps.RECEIVING.pack(
        0, epoch, before, since, 0, 0, 0, 0, leapt, 0, 0, lag, accepted, b"", *nothing, b"", 0, b"", b""
    )


def with_lag(value: bytes, lag: int) -> bytes:
    """The same pair with another lag."""
    at = maps.RECEIVING_LAG_AT
    return value[:at] + NUMBER.pack(lag) + value[at + NUMBER.size :]
