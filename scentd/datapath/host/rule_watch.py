"""Calls back when something is removed from nftables, where iptables of today keeps its rules, too, or gets a chain.

A firewall that is loaded anew, a container engine that restarts, `nft flush ruleset`: they remove what is not theirs.
Rules of iptables-legacy are not in nftables; nobody is told of their end.
"""

from __future__ import annotations

from collections.abc import Callable

from scentd.datapath.host.netlink_watch import HEADER, NetlinkWatch, messages

DEBOUNCE = 0.2  # seconds: a firewall is loaded anew in several steps
NETLINK_NETFILTER, NFNLGRP_NFTABLES, NFNL_SUBSYS_NFTABLES = 12, 7, 10  # linux/netfilter/nfnetlink.h
NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE = 2, 5, 8  # linux/netfilter/nf_tables.h
NFT_MSG_NEWCHAIN = 3  # the first one of NAT, perhaps
KINDS = (NFT_MSG_NEWCHAIN, NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE)
CHANGES = {NFNL_SUBSYS_NFTABLES << 8 | kind for kind in KINDS}


class RuleWatch(NetlinkWatch):
    """Calls back after each burst of removals or new chains, whosesoever."""

    def __init__(self, callback: Callable[[], object], debounce: float = DEBOUNCE) -> None:
        super().__init__("rule-watch", NETLINK_NETFILTER, 1 << (NFNLGRP_NFTABLES - 1), callback, debounce)

    def is_change(self, data: bytes) -> bool:
        return any(kind in CHANGES for kind, _ in messages(data, HEADER.size))
