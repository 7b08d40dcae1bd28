"""The rules between sections of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scentd.config.budget import check_budgets
from scentd.config.origin import check_origins
from scentd.config.policy import check_policies
from scentd.config.prometheus_server import check_servers
from scentd.config.provide import offered
from scentd.config.resource import check_resources
from scentd.config.schema import duplicates
from scentd.prefix import overlaps
from scentd.wire import layout

if TYPE_CHECKING:
    from scentd.config.sections import Config, Network, Peer


def check_config(config: Config) -> list[str]:
    problems = [
        *duplicates("network", [n.name for n in config.network]),
        *duplicates("peer", [p.name for p in config.peer]),
        *duplicates("policy", [p.name for p in config.policy]),
        *duplicates("resource", [r.name for r in config.resource]),
        *duplicates("budget", [b.name for b in config.budget]),
        *check_claims(config.network),
    ]
    metrics = {*layout.METRICS.values(), *(name for n in config.network for name in n.metrics)}
    problems += check_servers(config.prometheus_server, metrics, any(n.signs for n in config.network))
    private = {name for peer in config.peer for name in peer.metrics}
    peers = sorted(p.name for p in config.peer)
    problems += check_policies(config.policy, peers, private, config.resource)
    problems += check_resources(config.resource, peers)
    problems += check_budgets(config.budget, config.resource, peers)
    whole = [i for i, n in enumerate(config.network) if n.is_whole_host]
    if whole and len(config.network) > 1:
        problems += [f"network[{i}].addresses: missing; with several networks each names its own" for i in whole]
    if config.stamp.forwarded:
        problems += [
            f"peer[{i}].stamp_ipv6_fragments: not with stamp.forwarded, as only a source may fragment (RFC 8200)"
            for i, p in enumerate(config.peer)
            if p.stamp_ipv6_fragments
        ]
    problems += check_public_keys(config.peer)
    if any(n.stamps for n in config.network):
        problems += check_overlaps(config.peer)
    own = config.datapath.mark_stamped | config.datapath.mark_queued | config.datapath.mark_verified
    problems += check_origins(config.network, own | config.verify.mark_glance, config.stamp.forwarded)
    if config.verify.mark_glance & own:
        problems.append("verify.mark_glance: shares bits with a mark of [datapath]; choose other bits")
    if config.peer and not config.network and not config.bus.allocates and not offered(config):
        problems.append("network: missing; a host with peers needs an identity of its own: [[network]] with key_file")
    return problems


def check_claims(networks: list[Network]) -> list[str]:
    claims = [claim for n in networks for s in n.source if (claim := s.claim())]
    return [
        f"network.source: two sources listen on {claim!r}; give each a socket of its own"
        for claim in sorted({c for c in claims if claims.count(c) > 1})
    ]


def check_public_keys(peers: list[Peer]) -> list[str]:
    """Two peers cannot share a public key."""
    problems = []
    first: dict[str, int] = {}
    for i, peer in enumerate(peers):
        for name, key in peer.named_keys():
            if first.setdefault(key, i) != i:
                problems.append(f"peer[{i}].{name}: peer[{first[key]}] has the same key; list all addresses there")
    return problems


def check_overlaps(peers: list[Peer]) -> list[str]:
    """Peers may share addresses, as tenants behind one gateway do: their packets are told apart by key.

    Nothing tells apart what goes to them, so we stamp for one of them at most.
    """
    entries = [(i, a) for i, peer in enumerate(peers) if peer.stamp for a in peer.addresses]
    return [
        f"peer[{i}].addresses: {inner} lies in {outer} of peer[{other}], and nothing tells apart what goes to the two; "
        "set stamp = false for all but one of them"
        for i, inner, other, outer in overlaps(entries)
    ]
