"""Who of several profilers issues, who of several allocators decides: a lease that is a record in a store with
compare-and-set. Pure.

The active one renews the record twice an interval, and acts for HOLD intervals after the *sending* of its last
renewal. A standby takes the record over when it has not changed for TAKE intervals since the standby *saw* it, which is
later. As HOLD is less than TAKE, never do two act, whatever their clocks say, as long as these run at one rate. The
term rises with each owner, and receivers take no older one: that is the fence for who was stopped in between.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

HOLD, TAKE = 1.4, 1.6  # intervals
RENEW = 0.5
TERM_MAX = 2**40  # far beyond any clock
REPORTED_MAX = TERM_MAX - 2**20  # a report of more is no term: whoever lies leaves room for a million owners


class LeaseRecord(Struct, frozen=True):
    instance: Annotated[str, Meta(max_length=100)]  # "": nobody's, given back
    term: Annotated[int, Meta(ge=0, le=TERM_MAX)]
    interval: Annotated[float, Meta(gt=0, le=3600)]  # seconds, of its owner


class Lease:
    """What one profiler or allocator knows of the lease.

    Times are steady seconds; a revision is the store's number of a change.
    """

    def __init__(self, instance: str, interval: float) -> None:
        self.instance = instance
        self.interval = interval
        self.term = 0  # of the own lease
        self.record: LeaseRecord | None = None
        self.revision = 0  # 0: there is no record
        self._since = float("-inf")  # when this revision was seen first
        self._sent = float("-inf")  # when the last renewal was sent that succeeded
        self._highest = 0  # term that anybody had
        self._yielded = float("-inf")  # until then it is somebody else's
        self._reported = 0  # the highest term that receivers have taken

    def may_act(self, now: float) -> bool:
        return now < self._sent + HOLD * self.interval

    def see(self, record: LeaseRecord | None, revision: int, now: float) -> None:
        """What the store says."""
        if revision != self.revision or self.record is None:
            self._since = now
        self.record, self.revision = record, revision
        self._highest = max(self._highest, record.term if record is not None else 0)
        if record is None or record.instance != self.instance:
            self._sent = float("-inf")

    def wanted(self, now: float, clock: float) -> LeaseRecord | None:
        """The record to write in place of the one seen; None: it is somebody else's. `clock`: Unix time.

        A term is no less than the clock, so that it rises even if the store is made anew.
        """
        record = self.record
        if now < self._yielded:
            return None
        own = record is not None and record.instance == self.instance and record.term == self.term
        if own and self.term >= max(self._highest, self._reported):
            return LeaseRecord(self.instance, self.term, self.interval)
        free = record is None or record.instance in ("", self.instance)
        # The owner acts for HOLD of its own intervals, which may be longer.
        interval = self.interval if record is None else max(self.interval, record.interval)
        if free or now - self._since >= TAKE * interval:
            above = max(self._highest, self._reported) + 1
            return LeaseRecord(self.instance, min(max(above, int(clock)), TERM_MAX), self.interval)
        return None

    def wrote(self, record: LeaseRecord, revision: int, sent: float, now: float) -> None:
        """The store has taken the record, which was sent at `sent`."""
        self.see(record, revision, now)
        self.term, self._sent = record.term, sent

    def hear(self, instance: str, term: int, now: float) -> bool:
        """Somebody else issues under this name. True: he has a newer lease, of another store; this one yields.

        It stays away while he is heard, and comes back by a newer term: stampers take the old one no more. Of two of
        one second, whose terms are the same, the one yields whose instance is the lower text.
        """
        self._highest = max(self._highest, term)
        owner = self.record is not None and self.record.instance == self.instance  # as our store has it
        if instance == self.instance or not owner or (term, instance) < (self.term, self.instance):
            return False
        yields = self.may_act(now)
        self._sent = float("-inf")
        self._yielded = now + 2 * TAKE * self.interval
        return yields

    def raise_term(self, reported: int) -> None:
        """A receiver has taken this term. The own one will be above it: receivers refuse what is older.

        A store that is made anew has forgotten the terms, and a clock may have been set back; receivers know.
        """
        if reported <= REPORTED_MAX and reported > self.term:
            self._reported = max(self._reported, reported)
