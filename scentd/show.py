"""Status, events and explanations as text for people. Pure."""

from __future__ import annotations

from datetime import datetime


def status(data: dict) -> str:
    lines = [f"scentd {data['version']}, {data['datapath']}, since {moment(data['started'])}"]
    lines += [offload(data["offload"]), ""]
    for network in data["networks"]:
        lines.append(f"network {network['name']}  key {network['key_id']}")
        if network.get("epoch"):
            lines.append(f"  epoch {network['epoch']}, overall {level(network['overall'])}")
            lines.append(f"  {levels(network['levels'])}")
    for peer in data["peers"]:
        lines.append(f"peer {peer['name']}  key {peer['key_id']}")
        profile = peer["profile"]
        if profile is None:
            lines.append("  no profile received yet")
            continue
        glance = profile["glance"]
        lines.append(
            f"  epoch {profile['epoch']}, {profile['age']:.0f} s ago, overall {level(profile['overall'])}, "
            f"glance load {level(glance['load'])} threat {level(glance['threat'])}, {profile['nodes']} node(s)"
        )
        lines.append(f"  {levels(profile['levels'])}")
        if profile["affected"]:
            lines.append(f"  affected: {', '.join(profile['affected'])}")
    lines += ["", f"stamped {data['stamped']}, accepted {data['accepted']}, absent {data['absent']}"]
    lines.append(f"rejected: {counts(data['rejected'])}")
    lines.append(f"unstamped: {counts(data['unstamped'])}")
    lines.append(f"profiles {data['profiles']}, wrong: {counts(data['profile_errors'])}")
    allocation = data["allocation"]
    for prefix, until in allocation["quarantined"].items():
        lines.append(f"quarantined {prefix} until {moment(until)}")
    for name, rate in allocation["rates_bit_per_second"].items():
        lines.append(f"rate {name} {rate / 1e6:g} Mbit/s")
    return "\n".join(lines)


def offload(data: dict) -> str:
    if "why_not" in data:
        return f"no offload: {data['why_not']}"
    interfaces = f"stamps on {', '.join(data['egress']) or '-'}, verifies on {', '.join(data['ingress']) or '-'}"
    return f"offload by {data['mechanism'] or '-'}: {interfaces}"


def explanation(data: dict) -> str:
    lines = [f"network {data['network']}"]
    lines += [f"  {p['policy']}: {p['outcome']} {p['detail']}  {p['reason']}".rstrip() for p in data["policies"]]
    lines.append("decisions, newest first:" if data["decisions"] else "no decisions yet")
    for d in data["decisions"]:
        change = f"{d['before'] or '-'} -> {d['after'] or '-'}"
        why = f"epoch {d['epoch']}: {d['reason']}"
        lines.append(f"  {moment(d['at'])} {d['policy'] or '-'} {d['action']} {d['target']} {change} ({why})")
    return "\n".join(lines)


def event(data: dict) -> str:
    rest = " ".join(f"{k}={v}" for k, v in data.items() if k not in ("at", "event"))
    return f"{moment(data['at']) if 'at' in data else '-'} {data['event']} {rest}"


def scent(data: dict) -> str:
    return "  ".join(f"{key} {value}" for key, value in data.items())


def moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def level(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def levels(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in values.items()) or "no levels"


def counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items() if count) or "none"
