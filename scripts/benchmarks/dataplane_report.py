"""The rows and ratios of `bench dataplane`, their goals, and how they are told to people."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.report import columns, spread

GOALS = {  # at least; those of AT_MOST at most
    "ebpf_tcp_ipv4": 0.95,
    "ebpf_tcp_ipv6": 0.95,
    "tcp_retransmits_per_gb_added": 0.0,
    "ebpf_udp": 0.9,
    "latency_p50_us_added": 3.0,
    "ebpf_over_srv6_tcp": 1.0,
    "ebpf_over_srv6_udp": 1.0,
    "ebpf_over_wireguard_tcp": 50.0,
    "ebpf_over_nfqueue_tcp": 50.0,
    "program_ns": 500.0,
    "peers_1m_over_1": 1.2,
}
AT_MOST = ("tcp_retransmits_per_gb_added", "latency_p50_us_added", "program_ns", "peers_1m_over_1")
FAMILIES = (4, 6)

Turn = dict[str, float]
Turns = dict[tuple[str, str, int], list[Turn]]  # (load, kind, family) -> one a round


def row(key: tuple[str, str, int], turns: list[Turn]) -> dict[str, Any]:
    load, kind, family = key
    numbers = {name: spread([turn[name] for turn in turns]) for name in turns[0]}
    return {"load": load, "kind": kind, "family": family, **numbers}


def ratios(turns: Turns) -> dict[str, float | None]:
    """Of turns in the same round; None where a kind was left out. `..._tcp` and `_udp`: of the lower family."""
    made: dict[str, float | None] = {}
    for family in FAMILIES:
        made[f"ebpf_tcp_ipv{family}"] = of(turns, "tcp", "none", family)
    for family in FAMILIES:
        made[f"ebpf_udp_ipv{family}"] = of(turns, "udp", "none", family)
    made["ebpf_udp"] = least(made["ebpf_udp_ipv4"], made["ebpf_udp_ipv6"])
    made["floor_udp"] = least(*(of(turns, "udp", "none", family, "floor") for family in FAMILIES))
    for other in ("floor", "srv6", "wireguard", "nfqueue", "accept"):
        made[f"ebpf_over_{other}_tcp"] = least(*(of(turns, "tcp", other, family) for family in FAMILIES))
        made[f"ebpf_over_{other}_udp"] = least(*(of(turns, "udp", other, family) for family in FAMILIES))
    for family in FAMILIES:
        made[f"latency_p50_us_added_ipv{family}"] = added(turns, "latency", "p50", family)
        made[f"latency_p50_us_added_by_floor_ipv{family}"] = added(turns, "latency", "p50", family, "floor")
        made[f"tcp_retransmits_per_gb_added_ipv{family}"] = added(turns, "tcp", "retransmits_per_gb", family)
    for name in ("latency_p50_us_added", "tcp_retransmits_per_gb_added"):
        made[name] = most(*(made[f"{name}_ipv{family}"] for family in FAMILIES))
    return made


FIGURE = {"tcp": "gbit_s", "udp": "pps"}


def of(turns: Turns, load: str, other: str, family: int, kind: str = "ebpf") -> float | None:
    """How much more the offload, or this kind, carries than another."""
    pairs = both(turns, load, other, family, kind)
    name = FIGURE[load]
    return round(median(o[name] / t[name] for o, t in pairs), 4) if pairs else None


def added(turns: Turns, load: str, name: str, family: int, kind: str = "ebpf") -> float | None:
    """What the offload, or this kind, adds to `none`."""
    pairs = both(turns, load, "none", family, kind)
    return round(median(o[name] - t[name] for o, t in pairs), 3) if pairs else None


def both(turns: Turns, load: str, other: str, family: int, kind: str) -> list[tuple[Turn, Turn]]:
    ours, theirs = (turns.get((load, one, family), []) for one in (kind, other))
    return list(zip(ours, theirs, strict=True)) if ours and theirs else []


def least(*values: float | None) -> float | None:
    return min((v for v in values if v is not None), default=None)


def most(*values: float | None) -> float | None:
    return max((v for v in values if v is not None), default=None)


def table(result: dict[str, Any]) -> str:
    """For people."""
    parts = [traffic(result["rows"]), latencies(result["rows"])]
    if result["programs"]:
        parts.append(programs(result["programs"]))
    if result["peers"]:
        parts.append(peers(result["peers"]))
    parts.append(goals(result))
    parts += [f"{name} is left out: {why}" for name, why in result["left_out"].items()]
    parts.append(
        f"rounds: {result['rounds']}; medians, least..most; ratios are of turns in the same round; "
        f"other programs kept the machine {result['busy_before']:.0%} busy before"
    )
    return "\n\n".join(parts)


def span(numbers: dict[str, float], scale: float = 1.0, digits: int = 2) -> tuple[str, str]:
    """Median, and least..most."""
    middle, low, high = (f"{numbers[k] / scale:.{digits}f}" for k in ("median", "min", "max"))
    return middle, f"{low}..{high}"


def traffic(rows: list[dict[str, Any]]) -> str:
    lines = [("", "TCP Gbit/s", "", "retransmits/GB", "CPU s/GB", "UDP kpps", "", "loss", "waited", "CPU us/packet")]
    found = {(r["load"], r["kind"], r["family"]): r for r in rows}
    for load, kind, family in found:
        if load != "tcp":
            continue
        tcp, udp = found[load, kind, family], found["udp", kind, family]
        lines.append(
            (
                f"{kind} IPv{family}",
                *span(tcp["gbit_s"]),
                f"{tcp['retransmits_per_gb']['median']:.0f}",
                f"{tcp['cpu_s_per_gb']['median']:.3g}",
                *span(udp["pps"], 1000, 0),
                f"{udp['loss']['median']:.2%}",
                f"{udp['waited']['median']:.0%}",
                f"{udp['cpu_us_per_packet']['median']:.2f}",
            )
        )
    return columns(lines)


def latencies(rows: list[dict[str, Any]]) -> str:
    lines = [("", "round trip p50 us", "", "p99 us", "")]
    for r in rows:
        if r["load"] == "latency":
            lines.append((f"{r['kind']} IPv{r['family']}", *span(r["p50"], digits=1), *span(r["p99"], digits=1)))
    return columns(lines)


def programs(rows: list[dict[str, Any]]) -> str:
    lines = [("", "ns a run", "runs", "instructions", "machine code bytes")]
    for r in rows:
        name = f"{r['program']} IPv{r['family']}, {r['load']}"
        lines.append((name, f"{r['ns']:.0f}", f"{r['runs']}", f"{r['instructions']}", f"{r['jited_bytes']}"))
    return columns(lines)


def peers(rows: list[dict[str, Any]]) -> str:
    lines = [("", "peers", "one hot: ns", "", "spread: ns", "")]
    for r in rows:
        name = f"{r['program']} IPv{r['family']}"
        lines.append((name, f"{r['peers']:,}", *span(r["hot"], digits=0), *span(r["spread"], digits=0)))
    return columns(lines)


def goals(result: dict[str, Any]) -> str:
    lines = [("", "measured", "goal", "")]
    for name, value in result["ratio"].items():
        goal = result["goals"].get(name)
        bound = "" if goal is None else f"{'<=' if name in AT_MOST else '>='} {goal:g}"
        if value is None or goal is None:
            reached = ""
        else:
            reached = "reached" if (value <= goal if name in AT_MOST else value >= goal) else "missed"
        lines.append((name, "-" if value is None else f"{value:.3g}", bound, reached))
    return columns(lines)
