"""The table of views: the status document as something to look at, one line a view."""

from __future__ import annotations

from collections.abc import Callable

from scentd.control.status import Status
from scentd.show import prometheus, text

VIEWS: dict[str, Callable[[Status], str]] = {
    "text": text.status,
    "prometheus": prometheus.exposition,
}
