"""What `scentd doctor` says of packets to peers that this host rewrites behind the queue."""

from __future__ import annotations

from collections import Counter

from scentd.config.sections import Config, stamped_peers
from scentd.datapath.host import rewriting
from scentd.datapath.host.rewritten import TRANSLATED
from scentd.doctor.examine import Check
from scentd.errors import HostError

TITLE, IPSEC = "NAT", "IPsec"


def check_nat(config: Config) -> Check:
    """Whether source NAT keeps scents from packets to peers."""
    if not any(peer.bind == "flow" for peer in stamped_peers(config)):
        return Check(TITLE, "yes", "no scent of this host binds addresses")
    try:
        if not rewriting.read().nat:
            return Check(TITLE, "yes", "none on this host")
        counts = Counter({a: n for (reason, a), n in rewriting.counts().items() if reason == TRANSLATED})
    except HostError as error:
        return Check(TITLE, "warning", str(error), "run as root")
    if not counts:
        return Check(TITLE, "yes", "it has not changed the source of a packet to a peer")
    found = ", ".join(f"{packets} to {address}" for address, packets in counts.most_common(10))
    way_out = 'keep SNAT and MASQUERADE from peers, or datapath.offload = "auto", or peer.bind = "sender" at both ends'
    return Check(TITLE, "warning", f"left without a scent, because it changes their source: {found} (packets)", way_out)


def check_ipsec() -> Check:
    """Whether IPsec encrypts some of what leaves, and where the scent is then."""
    try:
        policies = rewriting.policies()
    except HostError as error:
        return Check(IPSEC, "warning", str(error), "run as root")
    if not policies:
        return Check(IPSEC, "yes", "no policies")
    return Check(
        IPSEC,
        "yes",
        f"{policies} policies for what leaves: in transport mode the scent is outside, in a tunnel inside IPv4, and "
        "IPv6 there has none",
    )
