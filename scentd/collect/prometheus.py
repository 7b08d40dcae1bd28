"""One number of a Prometheus text endpoint (exposition format 0.0.4), e.g. database or request load."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import ssl
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta

from scentd.collect.rate import Rates
from scentd.collect.source import CollectError, Reader, Setting
from scentd.config import selector
from scentd.config.schema import check_positive
from scentd.config.sections import Source
from scentd.config.units import Seconds
from scentd.model import Sample

GZIP = b"\x1f\x8b"  # RFC 1952: how a compressed page begins
MAX_PAGE = 4 * 1024 * 1024
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
        try:
            url = urlsplit(self.url)
            right = url.scheme in ("http", "https") and url.hostname and not url.username and url.port != 0
        except ValueError:
            right = False
        if not right:
            problems.append(f"{path}.url: {self.url!r}; write http://host:port/metrics or https://..., without a user")
        return problems


class PrometheusReader(Reader):
    """The sum of all matching series, or of their increases per second, as a share of `full`.

    Counts what it leaves out: NaN and infinite values, lines over MAX_LINE.
    """

    COUNTERS = ("prometheus_not_finite", "prometheus_too_long")

    def __init__(self, source: PrometheusSource, _: Setting) -> None:
        self.name = f"prometheus_{source.metric}"
        self.counters = dict.fromkeys(self.COUNTERS, 0)
        self._source = source
        self._url = urlsplit(source.url)
        self._selector = selector.parse(source.series)
        self._rates: Rates[tuple[tuple[str, str], ...]] = Rates(restarts=True)

    def counts(self) -> dict[str, int]:
        return self.counters

    def read(self, now: float) -> list[Sample]:
        source = self._source
        values = self._values(fetch(self._url, source.timeout))
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


def fetch(url: SplitResult, timeout: float) -> str:
    """The page's text, within `timeout` seconds to connect and as many to answer. Raises CollectError.

    http.client and not urllib.request: no proxy of the environment, no redirect
    and no other scheme can lead away from the configured address.
    """
    where = url.geturl()
    kind, port = {"http": (HTTPConnection, 80), "https": (HTTPSConnection, 443)}[url.scheme]
    connection = kind(url.hostname or "", url.port or port, timeout=timeout)
    expired = threading.Event()
    watchdog = None
    try:
        connection.connect()
        # A socket's timeout counts for each read: a server that trickles would hold the thread for ever.
        watchdog = threading.Timer(timeout, shut, (connection.sock, expired))
        watchdog.daemon = True
        watchdog.start()
        connection.request(
            "GET",
            (url.path or "/") + (f"?{url.query}" if url.query else ""),
            headers={"Accept": "text/plain;version=0.0.4", "Connection": "close"},
        )
        page = body(connection.getresponse(), where)
    except TimeoutError:
        raise slow(where, timeout) from None
    except ssl.SSLCertVerificationError as error:
        raise CollectError(f"{where}: {error.verify_message}; add its authority to the system's trust store") from None
    except (OSError, HTTPException) as error:
        if expired.is_set():
            raise slow(where, timeout) from None
        raise CollectError(f"{where}: {error or type(error).__name__}; does the exporter listen there?") from None
    finally:
        if watchdog is not None:
            watchdog.cancel()
        connection.close()
    if expired.is_set():  # the page ends where the watchdog cut it
        raise slow(where, timeout)
    try:
        return page.decode()
    except UnicodeDecodeError as error:
        raise CollectError(f"{where}: not UTF-8 at byte {error.start}; is this the metrics page?") from None


def body(response: HTTPResponse, where: str) -> bytes:
    if response.status != 200:
        moved = f" to {response.headers['Location']}" if "Location" in response.headers else ""
        raise CollectError(f"{where}: HTTP {response.status} {response.reason}{moved}; correct `url`")
    page = response.read(MAX_PAGE + 1)
    if page.startswith(GZIP) or response.headers.get("Content-Encoding", "identity") != "identity":
        raise CollectError(f"{where}: a compressed page, though a plain one was asked for; turn compression off there")
    if len(page) > MAX_PAGE:
        raise CollectError(f"{where}: more than {MAX_PAGE >> 20} MiB; ask for less, e.g. with a name[] parameter")
    return page


def slow(where: str, timeout: float) -> CollectError:
    return CollectError(f"{where}: no complete answer within {timeout:g} s; raise `timeout` or repair the exporter")


def shut(sock: socket.socket, expired: threading.Event) -> None:
    """Shut the socket down, so that the reading thread sees the end of the stream."""
    expired.set()
    # OSError: the socket is closed already. SSLSocket's own shutdown would remove the session while the
    # other thread reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
