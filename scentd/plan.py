"""What the host should look like, from firings; and what to do about it. Pure.

    plan(desired, firings, now) -> Plan: the next Desired, Decisions for the log, errands to run once
    diff(actual, desired, now)  -> Actions that make the host so

Every change of Desired is a Decision. Addresses are kept as prefixes (/32, /128).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from scentd import config
from scentd.decide import Firing
from scentd.model import Decision, Prefix

QUARANTINED_MAX = 65536  # elements of one set; the actuator makes its sets of this size
TIMEOUT_SLACK = 2.0  # seconds; nftables counts whole ones, rounded up
RATE_SLACK = 16.0  # bits per second; HTB counts whole bytes

RATE_MIN = 8000.0  # bits per second; HTB knows no rate of zero
RateKey = tuple[str, str]  # network, interface


@dataclass(frozen=True, slots=True)
class Confined:
    """One quarantined prefix."""

    until: float
    timeout: float  # as the policy had it
    network: str
    policy: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Desired:
    quarantined: Mapping[Prefix, Confined] = field(default_factory=dict)
    rates: Mapping[RateKey, float] = field(default_factory=dict)  # bits per second


@dataclass(frozen=True, slots=True)
class Actual:
    """What an actuator read back."""

    quarantined: Mapping[Prefix, float] = field(default_factory=dict)  # seconds left
    rates: Mapping[RateKey, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Isolate:
    prefix: Prefix
    seconds: float


@dataclass(frozen=True, slots=True)
class Release:
    prefix: Prefix


@dataclass(frozen=True, slots=True)
class SetRate:
    network: str
    interface: str
    rate: float


@dataclass(frozen=True, slots=True)
class Unshape:
    network: str
    interface: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run a program once."""

    argv: tuple[str, ...]
    timeout: float
    user: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Post:
    """POST to a URL once."""

    url: str
    timeout: float
    decision: Decision


Action = Isolate | Release | SetRate | Unshape
Errand = Run | Post


@dataclass(frozen=True, slots=True)
class Plan:
    desired: Desired
    decisions: tuple[Decision, ...] = ()
    errands: tuple[Errand, ...] = ()


def plan(desired: Desired, firings: Iterable[Firing], now: float) -> Plan:
    """Fold the firings into the desired state, then release what has served its time.

    In this order, so that a quarantine that is renewed at its last moment has no gap.
    """
    quarantined, rates = dict(desired.quarantined), dict(desired.rates)
    decisions: list[Decision] = []
    errands: list[Errand] = []
    for firing in firings:
        match firing.policy.do:
            case config.Quarantine() as do:
                decisions += quarantine(quarantined, firing, do)
            case config.Bandwidth() as do:
                decisions += bandwidth(rates, firing, do)
            case config.Command() as do:
                decision = decided(firing, "command", firing.network, "", shlex.join(do.argv))
                decisions.append(decision)
                errands.append(Run(tuple(do.argv), do.timeout, do.user, decision))
            case config.Webhook() as do:
                decision = decided(firing, "webhook", firing.network, "", site(do.url))
                decisions.append(decision)
                errands.append(Post(do.url, do.timeout, decision))
    decisions += release(quarantined, now)
    return Plan(Desired(quarantined, rates), tuple(decisions), tuple(errands))


def reload(desired: Desired, policies: Sequence[config.Policy], networks: Collection[str], now: float) -> Plan:
    """The desired state under these policies, at the start (from Desired()) and after a reload.

    What no policy speaks of any more is released. Each network that a bandwidth policy names has a
    rate: the one it has, else the policy's `start`, else its floor, within its policies' bounds.
    """
    decisions = []
    names = {p.name for p in policies if isinstance(p.do, config.Quarantine)}
    quarantined = {p: c for p, c in desired.quarantined.items() if c.policy in names and c.network in networks}
    for prefix, held in desired.quarantined.items():
        if prefix not in quarantined:
            decisions.append(released(prefix, held, now, "the policy or the network was removed"))
    rates: dict[RateKey, float] = {}
    for key, using in bandwidth_policies(policies, networks).items():
        dos = [p.do for p in using if isinstance(p.do, config.Bandwidth)]
        starts = [do.start for do in dos if do.start is not None]
        old = desired.rates.get(key)
        rate = old if old is not None else starts[0] if starts else dos[0].floor
        rates[key] = max(min(max(rate, min(do.floor for do in dos)), max(do.ceiling for do in dos)), RATE_MIN)
        if rates[key] != old:
            before, reason = "" if old is None else bits(old), "start" if old is None else "new bounds"
            decisions.append(
                Decision(now, key[0], using[0].name, 0, "bandwidth", key[1], before, bits(rates[key]), reason)
            )
    for key in desired.rates.keys() - rates.keys():
        reason = "no policy sets it any more"
        decisions.append(Decision(now, key[0], "", 0, "release", key[1], bits(desired.rates[key]), "free", reason))
    return Plan(Desired(quarantined, rates), tuple(decisions))


def bandwidth_policies(
    policies: Sequence[config.Policy], networks: Collection[str]
) -> dict[RateKey, list[config.Policy]]:
    found: dict[RateKey, list[config.Policy]] = {}
    for policy in policies:
        if isinstance(policy.do, config.Bandwidth):
            for network in networks if policy.network == "*" else [policy.network]:
                found.setdefault((network, policy.do.interface), []).append(policy)
    return found


def quarantine(quarantined: dict[Prefix, Confined], firing: Firing, do: config.Quarantine) -> list[Decision]:
    """Confine the targets from now on for the policy's timeout; never shortens what is there."""
    decisions = []
    until = firing.at + do.timeout
    for prefix in firing.targets:
        target, old = text(prefix), quarantined.get(prefix)
        before = f"quarantined until {clock(old.until)}" if old else "free"
        if prefix.prefixlen == 0:
            decisions.append(decided(firing, "quarantine", target, before, "refused: this is every address"))
        elif old is None and len(quarantined) >= QUARANTINED_MAX:
            after = f"refused: {QUARANTINED_MAX} are quarantined already"
            decisions.append(decided(firing, "quarantine", target, before, after))
            break
        elif old is None or until > old.until:
            quarantined[prefix] = Confined(until, do.timeout, firing.network, firing.policy.name, firing.epoch)
            decisions.append(decided(firing, "quarantine", target, before, f"quarantined until {clock(until)}"))
    return decisions


def release(quarantined: dict[Prefix, Confined], now: float) -> list[Decision]:
    """Let go what has served its time. A clock that was set back does not make the time longer."""
    decisions = []
    for prefix, held in list(quarantined.items()):
        if held.until - now > held.timeout:
            quarantined[prefix] = Confined(now + held.timeout, held.timeout, held.network, held.policy, held.epoch)
        elif held.until <= now:
            del quarantined[prefix]
            decisions.append(released(prefix, held, now, f"{held.timeout:g} s since the policy last fired"))
    return decisions


def released(prefix: Prefix, held: Confined, now: float, reason: str) -> Decision:
    before = f"quarantined until {clock(held.until)}"
    return Decision(now, held.network, held.policy, held.epoch, "release", text(prefix), before, "free", reason)


def bandwidth(rates: dict[RateKey, float], firing: Firing, do: config.Bandwidth) -> list[Decision]:
    """One step from the current rate, within the policy's bounds."""
    key = firing.network, do.interface
    start = do.floor if do.start is None else do.start
    old = rates.get(key, start)
    new = max(min(max(old + do.step, do.floor), do.ceiling), RATE_MIN)
    rates[key] = new
    if new == old:
        return []
    return [decided(firing, "bandwidth", do.interface, bits(old), bits(new))]


def diff(actual: Actual, want: Desired, now: float) -> list[Action]:
    """What makes `actual` into `want`: releases before isolations, so that a full set has room."""
    return [
        *diff_quarantine(actual.quarantined, seconds_left(want, now)),
        *diff_rates(actual.rates, want.rates),
    ]


def diff_quarantine(have: Mapping[Prefix, float], want: Mapping[Prefix, float]) -> list[Isolate | Release]:
    """Both map a prefix to the seconds it has left."""
    releases = [Release(prefix) for prefix in have if prefix not in want]
    isolations = [
        Isolate(prefix, seconds)
        for prefix, seconds in want.items()
        if prefix not in have or abs(have[prefix] - seconds) > TIMEOUT_SLACK
    ]
    return [*releases, *isolations]


def diff_rates(have: Mapping[RateKey, float], want: Mapping[RateKey, float]) -> list[SetRate | Unshape]:
    gone = [Unshape(*key) for key in have if key not in want]
    changed = [
        SetRate(*key, rate) for key, rate in want.items() if key not in have or abs(have[key] - rate) > RATE_SLACK
    ]
    return [*gone, *changed]


def seconds_left(want: Desired, now: float) -> dict[Prefix, float]:
    return {p: held.until - now for p, held in want.quarantined.items() if held.until > now}


def decided(firing: Firing, action: str, target: str, before: str, after: str) -> Decision:
    return Decision(
        firing.at, firing.network, firing.policy.name, firing.epoch, action, target, before, after, firing.reason
    )


def text(prefix: Prefix) -> str:
    """10.0.0.7, not 10.0.0.7/32."""
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def bits(rate: float) -> str:
    """As tc writes it and the configuration reads it: 12.5mbit."""
    for unit, scale in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate >= scale:
            return f"{rate / scale:.6g}{unit}"
    return f"{rate:.6g}bit"


def site(url: str) -> str:
    """Scheme and host only: the path of a webhook often is its secret."""
    try:
        parts = urlsplit(url)
    except ValueError:  # http://[::1
        return "(not a URL)"
    return f"{parts.scheme}://{parts.hostname or ''}"
