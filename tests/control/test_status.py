"""The bounds of the status document, and that its committed schema says what it is."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from scentd.control import status
from scentd.control.status import LIMIT, count_names, limit_list
from scentd.model import SCHEMA

SCHEMAS = json.loads((Path(status.__file__).parent / "status.schema.json").read_text())


def test_the_largest_stay_and_the_rest_is_handed_back():
    numbers = [3, 9, 1, 7]
    assert limit_list(numbers, 2, lambda n: n) == ([9, 7], [3, 1])
    assert limit_list(numbers, 4, lambda n: n) == (numbers, [])
    assert limit_list(numbers, 0, lambda n: n) == (numbers, [])
    assert limit_list([], 1, lambda n: n) == ([], [])


def test_equal_ranks_stay_in_order():
    assert limit_list(["b", "a", "c"], 2, lambda _: 0) == (["b", "a"], ["c"])


def test_what_is_left_out_is_counted_by_name():
    assert count_names(["quarantine", "bandwidth", "quarantine"]) == {"quarantine": 2, "bandwidth": 1}


def test_every_document_carries_its_schema():
    for name in ("Status", "Explanation", "ProfileExplanation", "Decision"):
        definition = SCHEMAS["$defs"][name]
        assert definition["properties"]["schema"] == {"const": SCHEMA}
        assert "schema" in definition["required"]
    explanation = status.Explanation(peer="a", policies=[], decisions=[])
    jsonschema.validate(msgspec.to_builtins(explanation), SCHEMAS)
    assert LIMIT > 0


def test_a_document_of_another_schema_is_refused():
    explanation = msgspec.to_builtins(status.Explanation(peer="a", policies=[], decisions=[]))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**explanation, "schema": SCHEMA - 1}, SCHEMAS)
