"""Turn parsed TOML into msgspec Structs, reporting every mistake at once with its path.

msgspec stops at the first mistake; a user who repairs a file wants them all. So
structs, lists of structs and tagged unions are walked here, and msgspec converts
the leaves.
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from scentd import units

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: immutable, and an unknown key is an error."""

    def mistakes(self, path: str) -> list[str]:
        """What a type cannot say, as "path.field: what, and the way out"."""
        return []


def convert(data: Any, kind: Any, path: str, problems: list[str]) -> Any:
    """`data` as `kind`, or None with an entry "path: mistake" in `problems` for each mistake."""
    kind, unit = unwrap(kind)
    variants = struct_variants(kind)
    if variants and not (data is None and type(None) in typing.get_args(kind)):
        return convert_struct(data, variants, path, problems)
    if typing.get_origin(kind) is list and isinstance(data, list):
        (item,) = typing.get_args(kind)
        if struct_variants(unwrap(item)[0]):
            items = [convert(d, item, f"{path}[{i}]", problems) for i, d in enumerate(data)]
            return [i for i in items if i is not None]
    try:
        return units.parse(data, unit) if unit else msgspec.convert(data, kind)
    except (ValueError, msgspec.ValidationError) as error:
        problems.append(f"{path}: {error}")
        return None


def unwrap(kind: Any) -> tuple[Any, str | None]:
    """The type to convert to and its unit; a quantity may be optional (Seconds | None)."""
    for candidate in (kind, *typing.get_args(kind)):
        for meta in getattr(candidate, "__metadata__", ()):
            if meta.extra and "unit" in meta.extra:
                return candidate, meta.extra["unit"]
    return kind, None


def struct_variants(kind: Any) -> list[type[Table]]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    members = typing.get_args(kind) if union else (kind,)
    return [m for m in members if isinstance(m, type) and issubclass(m, Table)]


def convert_struct(data: Any, variants: list[type[Table]], path: str, problems: list[str]) -> Any:
    """The struct made of what is right (defaults stand in for the rest, so that its own rules are checked, too)."""
    if not isinstance(data, dict):
        problems.append(f"{path}: expected a table, got {type(data).__name__}")
        return None
    struct = pick_variant(data, variants, path, problems)
    if struct is None:
        return None
    tag_field = struct.__struct_config__.tag_field
    hints, fields = members(struct)
    values = {}
    for key, value in data.items():
        if key in fields:
            name, before = fields[key].name, len(problems)
            converted = convert(value, hints[name], join(path, key), problems)
            if converted is not None or len(problems) == before:
                values[name] = converted
        elif key != tag_field:
            problems.append(f"{join(path, key)}: unknown key{suggestion(key, fields)}")
    missing = [key for key, field in fields.items() if field.required and key not in data]
    problems += [f"{join(path, key)}: missing" for key in missing]
    if any(field.required and field.name not in values for field in fields.values()):
        return None
    made = struct(**values)
    problems += made.mistakes(path)
    return made


@functools.cache
def members(struct: type[Table]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types by attribute name, and fields by their names in the file. Looking them up takes longer than converting."""
    fields = {f.encode_name: f for f in msgspec.structs.fields(struct)}
    return typing.get_type_hints(struct, include_extras=True), fields


def pick_variant(
    data: dict[str, Any], variants: list[type[Table]], path: str, problems: list[str]
) -> type[Table] | None:
    tag_field = variants[0].__struct_config__.tag_field
    if tag_field is None:
        return variants[0]
    by_tag = {v.__struct_config__.tag: v for v in variants}
    tag = data.get(tag_field)
    if isinstance(tag, str) and tag in by_tag:
        return by_tag[tag]
    choices = ", ".join(f'"{t}"' for t in by_tag)
    problems.append(f"{join(path, tag_field)}: {'missing' if tag is None else f'unknown: {tag!r}'}; one of {choices}")
    return None


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def suggestion(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def duplicates(section: str, names: list[str]) -> list[str]:
    """Mistakes of an array of tables whose names are not unique."""
    seen: set[str] = set()
    problems = []
    for i, name in enumerate(names):
        if name in seen:
            problems.append(f"{section}[{i}].name: {name!r} is there already; names are unique")
        seen.add(name)
    return problems
