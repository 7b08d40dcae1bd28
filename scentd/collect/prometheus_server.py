"""Asks an existing Prometheus server, a query a metric for all networks of this host (/api/v1/query)."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

from scentd.collect import http_get, promql
from scentd.collect.promql import ByNetwork, Networks
from scentd.collect.readers import highest_samples
from scentd.collect.source import CollectError
from scentd.config.prometheus_server import PrometheusServer, Query
from scentd.errors import KeyFileError
from scentd.model import Sample
from scentd.state import key_files

MAX_ANSWER = 64 * 1024 * 1024
MAX_TOKEN = 16 * 1024
MAX_THREADS = 4  # queries to one server at a time
COUNTERS = (*promql.COUNTERS, "failures")
TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+")  # RFC 6750, section 2.1

log = logging.getLogger(__name__)


class ServerReader:
    """The queries of one server, asked together, each failing alone. Touches nothing before the first read()."""

    def __init__(self, server: PrometheusServer, networks: Networks) -> None:
        self.queries = [ServerQuery(server, query, networks) for query in server.query]
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=f"prometheus-{server.name}")

    def read(self) -> Mapping[str, list[Sample]]:
        """Samples by network. Blocks until each query has its answer or is given up; call it in a worker thread."""
        return merged(self._pool.map(ServerQuery.read, self.queries))

    def counters(self) -> dict[str, int]:
        """Totals over the queries since this reader was made."""
        return {name: sum(query.counters[name] for query in self.queries) for name in COUNTERS}

    def close(self) -> None:
        """Does not wait for a reading in progress. May be called twice."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class ServerQuery:
    """One query and how it fares. `why_not` is the reason while it fails."""

    def __init__(self, server: PrometheusServer, query: Query, networks: Networks) -> None:
        self.counters: Counter[str] = Counter()
        self.metric = query.metric
        self.why_not = ""
        self.answered_at: float | None = None  # Unix time
        self.seconds = 0.0  # that the last answer took
        self.samples = 0  # in the last answer
        self.networks = 0  # with a sample there
        self._server = server
        self._where = f"prometheus_server {server.name}, {query.metric}"
        self._url = f"{server.url.rstrip('/')}/api/v1/query?" + urlencode(
            {"query": query.query, "timeout": f"{max(1, round(server.timeout * 1000))}ms"}
        )
        self._answers = promql.VectorAnswers(server, query, networks, self.counters)

    def read(self) -> ByNetwork:
        """Samples by network; {} if it fails, which the log says once."""
        began, fault = time.monotonic(), None
        try:
            content = self._ask()
            now = time.time()  # of the answer: a question may have waited for others
            found = self._answers.samples(content, now)
        except CollectError as error:
            reason = str(error)
        except Exception as error:  # a defect: log it, and let the other queries go on
            reason, fault = f"unexpected {error!r}; please report it", error
        else:
            if self.why_not:
                log.warning("%s: works again", self._where)
            self.why_not, self.answered_at, self.seconds = "", now, time.monotonic() - began
            self.samples, self.networks = sum(map(len, found.values())), len(found)
            return found
        self.counters["failures"] += 1
        if not self.why_not:
            log.warning("%s: %s (not repeated while it lasts)", self._where, reason, exc_info=fault)
        self.why_not, self.samples, self.networks = reason, 0, 0
        return {}

    def _ask(self) -> bytes:
        """Raises CollectError."""
        headers = {"Accept": "application/json"}
        if self._server.token_file:
            headers["Authorization"] = f"Bearer {token(self._server.token_file)}"
        limits = http_get.Limits(self._server.timeout, MAX_ANSWER, "aggregate in `query`", "the Prometheus server")
        answer = http_get.get(self._url, self._server.url, headers, limits)
        if answer.status == 200:
            return answer.content
        raise CollectError(f"{self._server.url}: {answer.summary}{reason_in(answer.content)}; {way_out(answer.status)}")


def merged(answers: Iterable[ByNetwork]) -> dict[str, list[Sample]]:
    """The samples of several queries; where two are of the same, the higher counts."""
    whole: dict[str, list[Sample]] = {}
    for answer in answers:
        for network, samples in answer.items():
            whole.setdefault(network, []).extend(samples)
    return {network: highest_samples(samples) for network, samples in whole.items()}


def token(token_file: str) -> str:
    """The token, read anew each time, as it may be replaced. Raises CollectError without any of it."""
    try:
        content = key_files.read("token_file", token_file, MAX_TOKEN + 1, "write the server's bearer token there")
    except KeyFileError as error:
        raise CollectError(str(error)) from None
    text = content.strip()
    if len(content) > MAX_TOKEN or not TOKEN.fullmatch(text):
        raise CollectError(f"token_file {token_file}: is no bearer token; write the token alone there, on one line")
    return text.decode("ascii")


def reason_in(content: bytes) -> str:
    """What Prometheus says of a refusal; "" if another program answered."""
    try:
        reply = promql.reply_of(content)
    except CollectError:
        return ""
    return f", {promql.refusal(reply)}" if reply.error else ""


def way_out(status: int) -> str:
    if status in (400, 422):
        return "correct `query`"
    if status in (401, 403):
        return "correct `token_file`"
    return "repair the server" if status >= 500 else "correct `url`"
