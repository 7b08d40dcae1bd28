"""Quantities with units: "5s", "300ms", "100mbit" to plain floats."""

from __future__ import annotations

import re
from typing import Annotated, Any

from msgspec import Meta

# Annotated so that a schema field's type says its unit; `schema.convert` reads the metadata.
Seconds = Annotated[float, Meta(extra={"unit": "seconds"})]
Bits = Annotated[float, Meta(extra={"unit": "bits"})]

Bytes = Annotated[float, Meta(extra={"unit": "bytes"})]

SCALES = {
    "seconds": {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "bytes": {"kb": 1e3, "mb": 1e6, "gb": 1e9},
    "bits": {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9},  # per second, as tc writes them
}
EXAMPLES = {"seconds": '"5s" or "300ms"', "bits": '"100mbit"', "bytes": '"64MB"'}
QUANTITY = re.compile(r"^([+-]?\d{1,15}(?:\.\d{1,9})?)\s*([a-z]+)$")


def parse(value: Any, unit: str) -> float:
    """The quantity in `unit` ("seconds", "bits"). Raises ValueError with an example."""
    scales = SCALES[unit]
    match = QUANTITY.match(value.strip().lower()) if isinstance(value, str) else None
    if match is None or match[2] not in scales:
        raise ValueError(f"{value!r} is not a quantity: write {EXAMPLES[unit]} (units: {', '.join(scales)})")
    return float(match[1]) * scales[match[2]]
