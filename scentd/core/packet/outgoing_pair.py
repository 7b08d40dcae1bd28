"""What the stamper knows of one pair: its current epoch, and which fragments of it have left."""

from __future__ import annotations

from scentd.core.packet import quote
from scentd.core.tables import StampPair
from scentd.model import Outgoing
from scentd.wire import layout

RUN = 16  # packets of a flow with the same fragment, once every fragment has left: receivers merge equal headers


class OutgoingPair:
    """One pair's current epoch: which fragments have left, and which goes next.

    Fragments go in rounds of all ten. Each round begins at another one, so that a flow which takes every second packet
    or run does not get the same five in each round: its packets may be all that one of several verifiers sees.
    """

    __slots__ = (
        "first_index",
        "fragment_bits",
        "key_since",
        "next_index",
        "outgoing",
        "pair",
        "previous_key",
        "rounds",
    )

    def __init__(self, pair: StampPair, outgoing: Outgoing, previous: OutgoingPair | None = None) -> None:
        """`previous` is the pair's epoch until now: routers may still send errors about packets of that epoch."""
        self.pair = pair
        self.outgoing = outgoing
        self.key_since = outgoing.epoch - outgoing.epoch % layout.PERIOD  # the first one of this tag key
        self.previous_key: bytes | None = None  # of the epochs before, by an earlier period or other keys
        if previous is not None and previous.outgoing.tag_key == outgoing.tag_key:
            self.key_since, self.previous_key = previous.key_since, previous.previous_key
        elif previous is not None:
            self.key_since, self.previous_key = outgoing.epoch, previous.outgoing.tag_key
        self.fragment_bits = 0  # bit i: fragment i has left
        self.first_index = self.next_index = 0  # of this round; of the next packet or run
        self.rounds = outgoing.epoch  # a pseudo-random sequence: which fragment begins the next round

    def tag_key(self, epoch: int) -> bytes | None:
        """The tag key of an epoch, or None if the pair has sent no packet of that epoch lately."""
        if not 0 <= self.outgoing.epoch - epoch <= quote.MAX_AGE:
            return None
        return self.outgoing.tag_key if epoch >= self.key_since else self.previous_key

    def take(self) -> tuple[int, int]:
        """(the index of the next fragment, the number of packets of a flow that may carry it)."""
        index = self.next_index
        run = 1 if self.fragment_bits.bit_count() < layout.FRAGMENTS else RUN
        self.fragment_bits |= 1 << index
        self.next_index = (index + 1) % layout.FRAGMENTS
        if self.next_index == self.first_index and run == RUN:
            self.rounds = (self.rounds * 1664525 + 1013904223) & 0xFFFFFFFF  # Knuth and Lewis: Numerical Recipes, 7.1
            self.first_index = self.next_index = (self.rounds >> 16) % layout.FRAGMENTS
        return index, run
