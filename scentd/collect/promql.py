"""The answers of Prometheus' HTTP API to a query, to samples by network. Pure: bytes and `now` in, samples out.

https://prometheus.io/docs/prometheus/latest/querying/api/ ("Expression query result formats"): an instant vector is a
list of {"metric": labels, "value": [Unix seconds, text]}. The time is the server's own at the evaluation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

import msgspec

from scentd.collect.source import CollectError
from scentd.config.prometheus_server import PrometheusServer, Query
from scentd.config.schema import NAME_PATTERN
from scentd.model import Sample
from scentd.prefix import PrefixMap

MAX_SERIES = 500_000  # of one answer: 100,000 networks of five nodes
CLOCK_TOLERANCE = 10.0  # seconds between the server's clock and ours; as verify.max_future between two ends
NAME_MAX = 255  # characters of a node's name

# What becomes a part of a characteristic must not end it (";") nor break a line of the log.
NAME = re.compile(NAME_PATTERN)
PORT = re.compile(r"\[([^\]]+)\]:\d{1,5}|([^:]+):\d{1,5}", re.ASCII)

COUNTERS = (
    "series",  # in answers
    "no_network",  # without the network's label
    "unknown_network",
    "foreign_node",  # an address that network.addresses does not have
    "bad_name",  # a role, region or node that cannot be one
    "not_finite",
    "no_value",  # a histogram, or no number
    "clock_off",  # dated by a clock that is not ours
    "twice",  # a second series of one node; the higher counts
    "partial",  # answers with warnings: something is missing in them
)

Networks = Mapping[str, PrefixMap[bool] | None]  # by name: whether an address is a node's; None: any is
ByNetwork = dict[str, list[Sample]]


class Reply(msgspec.Struct):
    status: str = ""
    errorType: str = ""
    error: str = ""
    warnings: list[str] = []
    data: Data | None = None


class Data(msgspec.Struct):
    resultType: str
    result: msgspec.Raw


class Labels(msgspec.Struct):
    """The labels that matter. Others are skipped unread."""

    network: str = ""
    node: str = ""
    role: str = ""
    region: str = ""


class Series(msgspec.Struct):
    metric: Labels
    value: tuple[float, str] | None = None


REPLY = msgspec.json.Decoder(Reply)


class VectorAnswers:
    """Answers to one query. `counters` takes the counts of COUNTERS."""

    def __init__(self, server: PrometheusServer, query: Query, networks: Networks, counters: Counter[str]) -> None:
        self._query = query
        self._networks = networks
        self._counters = counters
        self._series = msgspec.json.Decoder(list[series_type(server)])  # type: ignore[misc]

    def samples(self, content: bytes, now: float) -> ByNetwork:
        """Samples by network, dated by the server's clock, but never later than `now`. Raises CollectError.

        Where two series are of the same node, role and region the higher one counts.
        """
        highest: dict[tuple[str, str, str, str], Sample] = {}
        offset = 0.0
        for series in self._vector(content):
            if series.value is not None and not abs(series.value[0] - now) <= CLOCK_TOLERANCE:
                self._counters["clock_off"] += 1
                offset = series.value[0] - now
                continue
            sample = self._sample(series, now)
            if isinstance(sample, str):
                self._counters[sample] += 1
            else:
                key = series.metric.network, sample.node, sample.role, sample.region
                self._counters["twice"] += key in highest
                if key not in highest or sample.value > highest[key].value:
                    highest[key] = sample
        if offset and not highest:
            side = "ahead of" if offset > 0 else "behind"
            raise CollectError(f"its clock is {abs(offset):.0f} s {side} ours; set both by NTP")
        by_network: ByNetwork = {}
        for (network, *_), sample in highest.items():
            by_network.setdefault(network, []).append(sample)
        return by_network

    def _vector(self, content: bytes) -> list[Series]:
        if content.count(b'"metric"') > MAX_SERIES:  # counted before it is made, as that takes ten times the memory
            raise CollectError(f"more than {MAX_SERIES} series; aggregate them, or split the query by a label")
        reply = reply_of(content)
        if reply.status != "success" or reply.data is None:
            raise CollectError(f"{refusal(reply)}; correct `query`")
        if reply.data.resultType != "vector":
            raise CollectError(f"gives a {reply.data.resultType!r:.40} instead of a vector; correct `query`")
        try:
            series = self._series.decode(reply.data.result)
        except msgspec.DecodeError as error:
            raise CollectError(f"not a vector of Prometheus: {error}; correct `url`") from None
        self._counters["partial"] += bool(reply.warnings)
        self._counters["series"] += len(series)
        if not series:
            raise CollectError("gives no series; try the query in the server's own page")
        return series

    def _sample(self, series: Series, now: float) -> Sample | str:
        """The series' sample, or the counter of what it is instead."""
        labels, query = series.metric, self._query
        if labels.network not in self._networks:
            return "unknown_network" if labels.network else "no_network"
        at, text = series.value or (now, "")
        try:
            value = float(text)
        except ValueError:
            return "no_value"
        if not math.isfinite(value):
            return "not_finite"
        node, address = node_of(labels.node)
        own = self._networks[labels.network]
        if not is_name(labels.role) or not is_name(labels.region) or len(node) > NAME_MAX or not node.isprintable():
            return "bad_name"
        if own is not None and address and not own.get(address):
            return "foreign_node"
        share = min(max(value / query.full, 0.0), 1.0)
        return Sample(query.metric, share, min(at, now), node, labels.role or query.role, labels.region)


def series_type(server: PrometheusServer) -> type:
    """A Series with the server's names of labels."""
    names = {
        "network": server.network_label,
        "node": server.node_label,
        "role": server.role_label,
        "region": server.region_label,
    }
    fields = [(field, str, msgspec.field(default="", name=name)) for field, name in names.items()]
    labels = msgspec.defstruct("NamedLabels", fields)
    return msgspec.defstruct("NamedSeries", [("metric", labels), ("value", tuple[float, str] | None, None)])


def reply_of(content: bytes) -> Reply:
    """Raises CollectError."""
    try:
        return REPLY.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CollectError(f"not an answer of Prometheus: {error}; correct `url`") from None


def refusal(reply: Reply) -> str:
    """The server's reason, safe for a line of the log."""
    return f"{reply.errorType or 'no reason'}: {reply.error}"[:300].encode("unicode_escape").decode()


def is_name(text: str) -> bool:
    return not text or NAME.fullmatch(text) is not None


@lru_cache(maxsize=65536)
def node_of(label: str) -> tuple[str, bytes]:
    """(the node without its port, its address packed or b""): 10.1.0.7:9100 and [fd00::1]:9100 are nodes, too."""
    port = PORT.fullmatch(label)
    node = (port[1] or port[2]) if port else label
    for family in (AF_INET, AF_INET6):  # not ipaddress, which takes ten times as long
        try:
            packed = inet_pton(family, node)
        except (OSError, ValueError):
            continue
        return inet_ntop(family, packed), packed
    return node, b""
