"""Resources between hosts: which ones an allocator elsewhere decides of, and which ones are elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scentd.config.resource import Resource
from scentd.config.schema import suggestion

if TYPE_CHECKING:
    from scentd.config.sections import Config


def own(config: Config) -> list[Resource]:
    """Those that are on this host."""
    return [r for r in config.resource if r.host in ("", config.bus.name)]


def offered(config: Config) -> list[Resource]:
    """Those of this host that no policy here asks for: its allocators elsewhere decide of them."""
    if not config.bus.used or not any("allocate" in host.duties for host in config.bus.host):
        return []
    asked = {policy.do.asked_resource() for policy in config.policy}
    return [r for r in own(config) if r.name not in asked]


def elsewhere(config: Config) -> list[str]:
    """The names of those that other hosts have."""
    return [r.name for r in config.resource if r.host not in ("", config.bus.name)]


def check_provide(config: Config) -> list[str]:
    """The rules between [bus] and the resources."""
    providers = [host.name for host in config.bus.host if "provide" in host.duties]
    way_out = 'write [[bus.host]] with duties = ["provide"] for it'
    problems = [
        f"resource[{i}].host: no host that provides is named {r.host!r}{suggestion(r.host, providers)}; {way_out}"
        for i, r in enumerate(config.resource)
        if r.host not in ("", config.bus.name, *providers)
    ]
    names = {r.name for r in offered(config)}
    problems += [
        f"budget[{i}].resources: {name} is for an allocator elsewhere to decide of; write the budget there"
        for i, budget in enumerate(config.budget)
        for name in budget.resources
        if name in names
    ]
    return problems
