"""One number of a Prometheus text endpoint (exposition format 0.0.4), e.g. database or request load."""

from __future__ import annotations

import math
import re
import time
from typing import Annotated

from msgspec import Meta

from scentd.collect import http_get
from scentd.collect.rate import Rates
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config import selector
from scentd.config.schema import check_http_url, check_positive
from scentd.config.sections import Source
from scentd.config.units import Seconds
from scentd.model import Sample

MAX_PAGE = 4 * 1024 * 1024
LESS = "ask for less, e.g. with a name[] parameter"
ACCEPT = {"Accept": "text/plain;version=0.0.4"}
# The parser takes time in the square of a line's length; 16 KiB of labels are far beyond any real series.
MAX_LINE = 16 * 1024
Values = dict[tuple[tuple[str, str], ...], float]


class PrometheusSource(Source, tag_field="kind", tag="prometheus"):
    """One metric of a Prometheus text endpoint."""

    url: str
    series: str  # name, or name{label="value",...}; values of all matching series are summed
    full: Annotated[float, Meta(gt=0)]  # this value scores 1.0
    metric: str = "request_load"
    rate: bool = False  # a counter: score its increase per second
    timeout: Seconds = 2.0

    def scale(self) -> str:
        return f"{self.series} = {self.full:g}{'/s' if self.rate else ''}"

    def private_metric(self) -> str:
        return self.metric

    def mistakes(self, path: str) -> list[str]:
        problems = check_positive(self, path, "timeout", "full")
        try:
            selector.parse(self.series)
        except ValueError as error:
            problems.append(f"{path}.series: {error}")
        return problems + check_http_url(self.url, f"{path}.url", "http://host:port/metrics")


class PrometheusReader(Reader):
    """The sum of all matching series, or of their increases per second, as a share of `full`.

    Counts what it leaves out: NaN and infinite values, lines over MAX_LINE.
    """

    COUNTERS = ("prometheus_not_finite", "prometheus_too_long")

    def __init__(self, source: PrometheusSource, _: Setting) -> None:
        self.name = f"prometheus_{source.metric}"
        self.counters = dict.fromkeys(self.COUNTERS, 0)
        self._source = source
        self._selector = selector.parse(source.series)
        self._rates: Rates[tuple[tuple[str, str], ...]] = Rates(restarts=True)

    def counts(self) -> dict[str, int]:
        return self.counters

    def read(self, now: float) -> list[Sample]:
        source = self._source
        values = self._values(fetch(source.url, source.timeout))
        if source.rate:
            values = self._rates.update(values, time.monotonic())
        if not values:
            return []
        share = math.fsum(values.values()) / source.full
        return [Sample(source.metric, min(max(share, 0.0), 1.0), now)]

    def _values(self, page: str) -> Values:
        """The finite values of the matching series by their labels. Raises CollectError."""
        try:
            values, too_long = select(page, self._selector)
        except ValueError as error:
            raise CollectError(
                f"{self._source.url}: not the Prometheus text format: {error or 'unknown line'}"
            ) from None
        self.counters["prometheus_too_long"] += too_long
        if not values:
            raise CollectError(
                f"{self._source.url}: no series {self._source.series}; compare `series` with the page (curl)"
            )
        finite = {labels: value for labels, value in values.items() if math.isfinite(value)}
        self.counters["prometheus_not_finite"] += len(values) - len(finite)
        return finite


def select(page: str, wanted: selector.Selector) -> tuple[Values, int]:
    """Return values by labels, and the number of lines that were too long. Raises ValueError.

    Only the lines of that name and its TYPE are parsed, so that a malformed line of another
    metric does no harm, and a page of megabytes costs milliseconds.
    """
    from prometheus_client.parser import (
        text_string_to_metric_families,
    )  # a program that reads a configuration does not need it

    lines = [line[0] for line in lines_of(wanted.name).finditer(page)]
    short = [line for line in lines if len(line) <= MAX_LINE]
    values: Values = {}
    try:
        for family in text_string_to_metric_families("\n".join(short)):
            for sample in family.samples:
                if is_name(sample.name, family.type, wanted.name) and wanted.matches(sample.labels):
                    values[tuple(sorted(sample.labels.items()))] = float(sample.value)
    except (IndexError, OverflowError) as error:  # the parser's own defects on malformed lines
        raise ValueError(str(error)) from None
    return values, len(lines) - len(short)


def lines_of(name: str) -> re.Pattern[str]:
    """Matches a name's lines. OpenMetrics gives a counter's TYPE without _total; newer pages may have {"name", ...}."""
    base = name.removesuffix("_total")
    return re.compile(
        rf'^[ \t]*(?:#[ \t]*TYPE[ \t]+)?(?:\{{[ \t]*")?{base}(?:_total)?(?![a-zA-Z0-9_:])[^\n]*', re.MULTILINE
    )


def is_name(name: str, kind: str, wanted: str) -> bool:
    """Whether a parsed name is `wanted`: the parser adds _total to every counter's name, a page may lack it."""
    return name == wanted or (kind == "counter" and name == f"{wanted}_total")


def fetch(url: str, timeout: float) -> str:
    """The page's text. Raises CollectError."""
    answer = http_get.get(url, url, ACCEPT, http_get.Limits(timeout, MAX_PAGE, LESS, "the exporter"))
    if answer.status != 200:
        raise CollectError(f"{url}: {answer.summary}; correct `url`")
    try:
        return answer.content.decode()
    except UnicodeDecodeError as error:
        raise CollectError(f"{url}: not UTF-8 at byte {error.start}; is this the metrics page?") from None
