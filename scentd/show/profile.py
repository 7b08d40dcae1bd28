"""Explanations as text for people: how a profile came about. Pure."""

from __future__ import annotations

import msgspec

from scentd.control.status import Explanation, ProfileExplanation
from scentd.model import EventAccount, GroupAccount, LevelAccount, NodeState, SampleAccount
from scentd.show import text
from scentd.show.text import counts, level, moment


def explained(answer: dict) -> str:
    """What the daemon says to `scentd explain`: of a peer, or of a profile of ours."""
    if "profile" in answer:
        return explanation(msgspec.convert(answer, ProfileExplanation))
    return text.explanation(msgspec.convert(answer, Explanation))


def explanation(data: ProfileExplanation) -> str:
    profile = data.profile
    weights = sum(of.weight for of in profile.levels if of.level is not None)
    lines = [
        f"network {data.network}, epoch {data.epoch} of {moment(profile.at)}, every {data.interval:g} s, "
        f"levels in steps of 1/{profile.steps}",
        f"overall {level(profile.overall)}: the levels' mean by weight",
    ]
    for of in profile.levels:
        lines += level_lines(of, weights, profile.events if of.metric == "threat" else [])
    if profile.groups:
        lines.append("of roles and of paths to regions:")
        lines += [f"  {group_line(group)}" for group in profile.groups]
    lines.append(f"characteristics, {len(profile.items)} sent: {', '.join(profile.items) or 'none'}")
    lines += [f"  left out: {item}: {why}" for item, why in profile.left_out.items()]
    if profile.affected:
        lines.append(f"affected nodes, sent as pseudonyms: {', '.join(profile.affected)}")
    lines += [f"node {node_line(node)}" for node in data.nodes]
    lines.append(f"refused, clipped or noticed so far: {counts(data.intake)}")
    return "\n".join(lines)


def level_lines(of: LevelAccount, weights: float, events: list[EventAccount]) -> list[str]:
    if of.value is None:
        lines = [f"{of.metric} unknown: no sample of the network counts"]
    else:
        how = f"{of.aggregation} of {of.nodes} node{'s' if of.nodes != 1 else ''}"
        if of.aggregation == "joined":
            how = f"joined of {of.nodes} node(s) and {len(events)} event(s)"
        lines = [
            f"{of.metric} {level(of.level)}: {how} {of.value:.4f}, 0 to 1 {of.unit}, "
            f"weight {of.weight:g} of {weights:g}"
        ]
    lines += [f"    {sample_line(sample)}" for sample in of.samples]
    lines += [f"    event {e.kind} of {e.node or 'no node'}, severity {e.severity:.2f}" for e in events]
    return lines


def sample_line(sample: SampleAccount) -> str:
    value = "no number" if sample.value is None else f"{sample.value:.4g}"
    where = f" to {sample.region}" if sample.region else ""
    role = f" ({sample.role})" if sample.role else ""
    line = f"{sample.node or 'this host'}{role}{where} {value}, {sample.age:.1f} s ago, {sample.state}"
    if sample.counts is None:
        line += ", left out"
    elif sample.counts != sample.value:
        line += f", counts as {sample.counts:.2f}"
    return f"{line}: {sample.reason}" if sample.reason else line


def group_line(group: GroupAccount) -> str:
    name = f"region {group.region}" if group.region else f"role {group.role}"
    known = f"{level(group.level)} {group.word}".rstrip()
    line = f"{name}: {group.metric} {known} of {group.nodes} node(s)"
    return f"{line}, left out: {group.why_not}" if group.why_not else line


def node_line(node: NodeState) -> str:
    """Also for the status."""
    roles = f" ({', '.join(node.roles)})" if node.roles else ""
    line = f"{node.name or 'this host'}{roles}: {node.state}"
    return f"{line}, {node.reason}" if node.reason else line
