"""Makes a View of each peer from its verified profiles and its glances. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from scentd.model import Profile, View
from scentd.prefix import Address, Prefix
from scentd.wire import bloom, layout, profile

HISTORY = 16  # profiles kept per peer, newest first
NODE_SECONDS = 300.0  # a node is forgotten this long after its last accepted packet
PRUNE_SECONDS = 1.0
MAX_NODES = 4096  # nodes kept per peer
ALARM_THREAT = 0.5  # a glance whose threat rises to this or more is an alarm


class PeerView:
    """The state behind one peer's View."""

    def __init__(
        self, peer: str, prefixes: tuple[Prefix, ...], slots: Mapping[str, int], shared: tuple[Prefix, ...] = ()
    ):
        """`slots` maps metric names to level slots, the peer's private ones included; `shared`: as in a View."""
        self.peer = peer
        self.prefixes = prefixes
        self.shared = shared
        self.has_news = False  # profile, glance or a node, since somebody set it to False
        self._pseudonym_key = b""  # of the newest profile
        self._names = {slot: name for name, slot in slots.items()}
        self._bits = bloom.to_bits(bytes(layout.BLOOM_LEN))
        self._profiles: tuple[Profile, ...] = ()
        self._received_at = 0.0
        self._signed = b""
        self._glance = (0.0, 0.0)
        self._glance_epoch = 0
        self._alarm_at = 0.0
        self._nodes: dict[Address, float] = {}  # the time of a node's last packet, oldest first
        self._items: dict[Address, list[str]] = {}  # the Bloom filter items of an affected node; computed once
        self._marked: dict[Address, bool] = {}  # whether the newest profile marks the node as affected
        self._pruned_at = 0.0

    @property
    def highest_epoch(self) -> int:
        """Of all that is known."""
        return max(self._glance_epoch, self._profiles[0].epoch if self._profiles else 0)

    def forget_profiles(self) -> None:
        """Forget what packets have said: its epochs were ahead of all clocks."""
        self._profiles, self._signed = (), b""
        self._glance, self._glance_epoch, self._alarm_at = (0.0, 0.0), 0, 0.0
        self._marked.clear()

    def take_glance(self, epoch: int, load: float, threat: float, now: float) -> bool:
        """Record an accepted packet's glance. True: load or threat has changed."""
        if epoch < self._glance_epoch:
            return False
        changed = (load, threat) != self._glance
        self.has_news |= changed
        if threat < ALARM_THREAT:
            self._alarm_at = 0.0
        elif threat > self._glance[1]:
            self._alarm_at = now
        self._glance_epoch, self._glance = epoch, (load, threat)
        return changed

    def take_profile(self, body: profile.Body, pseudonym_key: bytes, now: float, signed: bytes = b"") -> Profile | None:
        """Add a profile; `signed` are its bytes as its network signed them. None: it is not newer than the newest one
        (the packet path keeps order, a bus does not).

        `pseudonym_key`: of the keys under which the profile came.
        """
        if self._profiles and body.epoch <= self._profiles[0].epoch:
            return None
        levels = {self._names[slot]: value for slot, value in body.levels.items() if slot in self._names}
        newest = Profile(self.peer, body.epoch, body.interval, body.overall, levels, body.bloom)
        self.has_news = True
        self._profiles = (newest, *self._profiles[: HISTORY - 1])
        self._received_at, self._signed = now, signed
        if pseudonym_key != self._pseudonym_key:
            self._pseudonym_key = pseudonym_key
            self._items.clear()
        self._marked.clear()
        self._bits = bloom.to_bits(body.bloom)
        return newest

    def take_nodes(self, addresses: Iterable[bytes], now: float) -> None:
        """Record source addresses. Beyond MAX_NODES the node whose last packet is oldest goes: none can hide."""
        for packed in addresses:
            node = ip_address(packed)
            self.has_news |= node not in self._nodes
            self._nodes.pop(node, None)
            self._nodes[node] = now
            if len(self._nodes) > MAX_NODES:
                self._forget(next(iter(self._nodes)))
        if not 0 <= now - self._pruned_at < PRUNE_SECONDS:
            self._pruned_at = now
            for node in [n for n, at in self._nodes.items() if now - at > NODE_SECONDS]:
                self._forget(node)

    def _forget(self, node: Address) -> None:
        del self._nodes[node]
        self._items.pop(node, None)
        self._marked.pop(node, None)

    def view(self, now: float) -> View | None:
        """The View, or None before the first profile."""
        if not self._profiles:
            return None
        nodes = frozenset(a for a, at in self._nodes.items() if now - at <= NODE_SECONDS)
        return View(
            peer=self.peer,
            profiles=self._profiles,
            received_at=self._received_at,
            glance_load=self._glance[0],
            glance_threat=self._glance[1],
            glance_epoch=self._glance_epoch,
            alarm_at=self._alarm_at,
            nodes=nodes,
            affected=self._affected(nodes),
            prefixes=self.prefixes,
            shared=self.shared,
            signed=self._signed,
        )

    def _affected(self, nodes: frozenset[Address]) -> frozenset[Address]:
        """The nodes that the newest profile marks as affected; none if the profile reports no threat."""
        newest = self._profiles[0]
        if not newest.threat:
            return frozenset()
        return frozenset(node for node in nodes if self._is_marked(node, newest.epoch))

    def _is_marked(self, node: Address, epoch: int) -> bool:
        marked = self._marked.get(node)
        if marked is None:
            if node not in self._items:
                self._items[node] = profile.event_items(self._pseudonym_key, (node,))
            marked = all(bloom.has_item(self._bits, epoch, item) for item in self._items[node])
            self._marked[node] = marked
        return marked
