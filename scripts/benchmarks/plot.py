"""One figure of what `bench dataplane` measured. matplotlib is in the extra [bench]."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.lab import LabError

COLOURS = {4: "#1f6f8b", 6: "#e08e45"}
LINES = {"stamp": "#1f6f8b", "verify": "#e08e45", "assemble": "#6a994e"}
STYLES = {"hot": "-", "spread": "--"}
FORMATS = (".png", ".svg", ".pdf")
PANELS = (  # load, number, divisor, title
    ("tcp", "gbit_s", 1, "TCP, one stream, Gbit/s"),
    ("udp", "pps", 1000, "small UDP packets, thousands a second"),
    ("latency", "p50", 1, "round trip over TCP, median, µs"),
)


def require(file: str) -> None:
    """Raise LabError if a figure cannot be drawn into this file."""
    if Path(file).suffix not in FORMATS:
        raise LabError(f"--plot {file}: the name must end in one of {', '.join(FORMATS)}")
    if not Path(file).resolve().parent.is_dir():
        raise LabError(f"--plot {file}: there is no such directory")
    if find_spec("matplotlib") is None:
        raise LabError("--plot needs matplotlib: .venv/bin/python -m pip install -e '.[bench]'")


def draw(result: dict[str, Any], file: str) -> None:
    """Bars by kind and family for each load, and the cost of a run by the number of peers."""
    require(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2).flatten()
    for axis, (load, number, divisor, title) in zip(axes, PANELS, strict=False):
        bars(axis, [r for r in result["rows"] if r["load"] == load], number, divisor)
        axis.set_title(title)
    if result["peers"]:
        by_peers(axes[-1], result["peers"])
    else:
        axes[-1].set_axis_off()
    figure.suptitle(
        f"scentd between two network namespaces: {result['cores']} cores, Linux {result['kernel']}, "
        f"rounds: {result['rounds']}, bars: medians, whiskers: least and most",
        fontsize="medium",
    )
    figure.savefig(file, dpi=150)


def bars(axis: Any, rows: list[dict[str, Any]], number: str, divisor: float) -> None:
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    for family, shift in ((4, -0.2), (6, 0.2)):
        mine = [r for r in rows if r["family"] == family]
        places = [kinds.index(r["kind"]) + shift for r in mine]
        middles = [r[number]["median"] / divisor for r in mine]
        below = [m - r[number]["min"] / divisor for m, r in zip(middles, mine, strict=True)]
        above = [r[number]["max"] / divisor - m for m, r in zip(middles, mine, strict=True)]
        drawn = axis.bar(places, middles, 0.38, color=COLOURS[family], label=f"IPv{family}")
        axis.errorbar(places, middles, (below, above), fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        axis.bar_label(drawn, fmt="%.3g", padding=2, fontsize="x-small")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.margins(y=0.12)
    plain(axis)
    axis.legend(frameon=False)


def by_peers(axis: Any, rows: list[dict[str, Any]]) -> None:
    """IPv4 and IPv6 differ by little: the dearer of the two."""
    for program, colour in LINES.items():
        mine = [r for r in rows if r["program"] == program]
        sizes = sorted({r["peers"] for r in mine})
        for mode, style in STYLES.items():
            worst = [max(r[mode]["median"] for r in mine if r["peers"] == size) for size in sizes]
            label = f"{program}, {'one of them talks' if mode == 'hot' else 'all of them talk'}"
            axis.plot(sizes, worst, style, color=colour, marker="o", markersize=4, label=label)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_title("a run of the programs by number of peers, ns")
    plain(axis)
    axis.legend(frameon=False, fontsize="small")


def plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
