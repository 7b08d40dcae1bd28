"""Turn parsed TOML into msgspec Structs, reporting every mistake at once with its path.

msgspec stops at the first mistake; a user who repairs a file wants them all. So this module walks structs, lists of
structs and sections of a kind, and msgspec converts the leaves.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import typing
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from scentd.config import units

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Kinds = Mapping[str, Mapping[str, type["Table"]]]  # by table ("source", "action"), then by kind: the section's type


GONE = {  # kinds of earlier versions, by their table
    ("action", "bandwidth"): 'rates are resources now: write [[resource]] with kind = "bandwidth" (minimum and maximum '
    'in the place of floor and ceiling), and here kind = "amount" with resource = its name, and by = the step'
}


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: immutable, and an unknown key is an error."""

    renamings: typing.ClassVar[Mapping[str, str]] = {}  # old keys of the file -> new keys

    gone: typing.ClassVar[Mapping[str, str]] = {}  # old keys without a successor -> what to do

    def mistakes(self, path: str) -> list[str]:
        """The mistakes that types cannot express, as "path.field: what, and the way out"."""
        return []


def of_kind(table: str) -> Any:
    """The annotation of a field whose type depends on a kind. `table` names the table of kinds."""
    return Meta(extra={"kinds": table})


def kind_of(section: Table) -> str:
    """The section's `kind` in the file."""
    return str(section.__struct_config__.tag)


def convert(data: Any, kind: Any, path: str, problems: list[str], kinds: Kinds) -> Any:
    """`data` as `kind`, or None with an entry "path: mistake" in `problems` for each mistake."""
    kind, extra = unwrap(kind)
    if "kinds" in extra:
        variants = kinds[extra["kinds"]]
        struct = pick_kind(data, extra["kinds"], variants, path, problems) if isinstance(data, dict) else Table
        return None if struct is None else convert_struct(data, struct, path, problems, kinds)
    if isinstance(kind, type) and issubclass(kind, Table):
        return convert_struct(data, kind, path, problems, kinds)
    if typing.get_origin(kind) is list and isinstance(data, dict) and is_section(typing.get_args(kind)[0]):
        header = re.sub(r"\[\d+\]", "", path)
        problems.append(f"{path}: there may be several, each begins with [[{header}]]")
        return None
    if typing.get_origin(kind) is list and isinstance(data, list):
        (item,) = typing.get_args(kind)
        if is_section(item):
            items = [convert(d, item, f"{path}[{i}]", problems, kinds) for i, d in enumerate(data)]
            return [i for i in items if i is not None]
    try:
        return units.parse(data, extra["unit"]) if "unit" in extra else msgspec.convert(data, kind)
    except (ValueError, msgspec.ValidationError) as error:
        problems.append(f"{path}: {error}{way_out(kind)}")
        return None


def way_out(kind: Any) -> str:
    """Of a value that is not of this kind: what may stand there, if that is a choice."""
    options = [kind, *typing.get_args(kind)] if typing.get_origin(kind) is not Annotated else [*typing.get_args(kind)]
    choices = [text for option in options if typing.get_origin(option) is Literal for text in typing.get_args(option)]
    return f"; one of {', '.join(map(json.dumps, choices))}" if choices else ""


def unwrap(kind: Any) -> tuple[Any, dict[str, Any]]:
    """(the type to convert to, the metadata of its annotation). A quantity may be optional (Seconds | None)."""
    inner = () if typing.get_origin(kind) is list else typing.get_args(kind)
    for candidate in (kind, *inner):
        for meta in getattr(candidate, "__metadata__", ()):
            if meta.extra:
                return candidate, meta.extra
    return kind, {}


def is_section(kind: Any) -> bool:
    kind, extra = unwrap(kind)
    return "kinds" in extra or (isinstance(kind, type) and issubclass(kind, Table))


def convert_struct(data: Any, struct: type[Table], path: str, problems: list[str], kinds: Kinds) -> Any:
    """The struct of the fields that are right. The others get their defaults, so that the struct's own rules are
    checked, too. None if a required field is missing or wrong.
    """
    if not isinstance(data, dict):
        problems.append(f"{path}: expected a table, got {type(data).__name__}")
        return None
    tag_field = struct.__struct_config__.tag_field
    hints, fields = members(struct)
    values = {}
    for key, value in data.items():
        if key in fields:
            name, before = fields[key].name, len(problems)
            converted = convert(value, hints[name], join(path, key), problems, kinds)
            if converted is not None or len(problems) == before:
                values[name] = converted
        elif key in struct.renamings:
            problems.append(f"{join(path, key)}: is called {join(path, struct.renamings[key])} now; write that name")
        elif key in struct.gone:
            problems.append(f"{join(path, key)}: {struct.gone[key]}")
        elif key != tag_field:
            problems.append(f"{join(path, key)}: unknown key{suggestion(key, fields)}")
    missing = [key for key, field in fields.items() if field.required and key not in data]
    problems += [f"{join(path, key)}: missing" for key in missing]
    if any(field.required and field.name not in values for field in fields.values()):
        return None
    section = struct(**values)
    problems += section.mistakes(path)
    return section


@functools.cache
def members(struct: type[Table]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(types by attribute name, fields by names in the file). Cached: the look-up takes longer than converting."""
    fields = {f.encode_name: f for f in msgspec.structs.fields(struct)}
    return typing.get_type_hints(struct, include_extras=True), fields


def pick_kind(
    data: dict[str, Any], table: str, variants: Mapping[str, type[Table]], path: str, problems: list[str]
) -> type[Table] | None:
    tag = data.get("kind")
    if isinstance(tag, str) and tag in variants:
        return variants[tag]
    if isinstance(tag, str) and (table, tag) in GONE:
        problems.append(f"{join(path, 'kind')}: {GONE[table, tag]}")
        return None
    choices = ", ".join(f'"{t}"' for t in variants)
    problems.append(f"{join(path, 'kind')}: {'missing' if tag is None else f'unknown: {tag!r}'}; one of {choices}")
    return None


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def suggestion(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


# -- rules that several sections share -----------------------------------


def duplicates(section: str, names: list[str]) -> list[str]:
    """Mistakes of an array of tables whose names are not unique."""
    seen: set[str] = set()
    problems = []
    for i, name in enumerate(names):
        if name in seen:
            problems.append(f"{section}[{i}].name: {name!r} is the name of another {section}; choose a unique name")
        seen.add(name)
    return problems


def check_positive(section: Table, path: str, *fields: str) -> list[str]:
    return [f"{path}.{f}: must be more than 0" for f in fields if not 0 < getattr(section, f) < math.inf]


def check_http_url(url: str, path: str, example: str) -> list[str]:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and not parts.username and parts.port != 0
    except ValueError:
        right = False
    return [] if right else [f"{path}: {url!r}; write {example} or https://..., without a user"]


def check_prefixes(addresses: list[str], path: str) -> list[str]:
    problems = []
    for i, text in enumerate(addresses):
        try:
            ip_network(text)
        except ValueError as error:
            problems.append(f"{path}[{i}]: {error}; write 10.1.0.0/24, 10.1.0.7 or fd00:1::/64")
    return problems
