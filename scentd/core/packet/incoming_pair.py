"""What a verifier knows of one pair."""

from __future__ import annotations

from scentd.core.tables import Incoming
from scentd.prefix import PrefixMap
from scentd.wire import ip


class IncomingPair:
    """One pair's state at its receiver: the fragments and nodes of the current epoch so far."""

    __slots__ = (
        "accepted",
        "addresses",
        "barred",
        "epoch",
        "fragments",
        "glance",
        "incoming",
        "key_ids",
        "local",
        "nodes",
        "replayed",
    )

    def __init__(self, incoming: Incoming) -> None:
        self.accepted = 0  # packets since the last drain
        self.epoch = 0
        self.key_ids = b""  # of the keys of `epoch`: fragments under other keys are not its own
        self.fragments: dict[int, bytes] = {}  # those of `epoch` that have become events
        self.replayed = (b"", 0)  # source and epoch of the last packet that was refused as replayed
        self.glance = 0  # of `epoch`, unmasked
        self.nodes: set[bytes] = set()
        self.barred: PrefixMap[float] | None = None  # the Unix time of release, by source
        self.configure(incoming)

    def configure(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.addresses = PrefixMap((p, True) for p in incoming.peer)
        self.local = PrefixMap((p, True) for p in incoming.network)

    def serves(self, parsed: ip.Parsed) -> bool:
        """Whether the packet's source is the peer's and its destination the network's."""
        own = not self.incoming.network or self.local.get(parsed.destination)
        return bool(own and self.addresses.get(parsed.source))
