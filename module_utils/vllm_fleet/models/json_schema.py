"""The part of JSON Schema that models/schema.json uses, for a run: no package but Python's own is needed. Pure.

The schema file is the only place that says what a preset looks like; the tests check it with the jsonschema package as
well and hold that both judge alike. A keyword that is not known here raises, so that none is silently passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_SILENT = frozenset({"$schema", "$defs", "title", "description"})


def faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, at: str = "") -> list[str]:
    """Return what is wrong with ``value``, one clause for each fault with its place; empty when it is right.

    Raises ValueError for a keyword of the schema that is not known here.
    """
    return list(_faults(value, schema, schema if root is None else root, at))


def _faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    if "$ref" in schema:
        yield from _faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
        return
    where = at or "the file"
    kind = schema.get("type")
    if kind is not None and not _is(value, kind):
        yield f"{where} is {_told(value)}; expected {_article(kind)}"
        return
    for word, wanted in schema.items():
        if word in _SILENT or word in ("type", "items", "properties", "additionalProperties"):
            continue
        check = _CHECKS.get(word)
        if check is None:
            raise ValueError(f"the schema uses {word!r}, which is not supported")
        if told := check(value, wanted):
            yield f"{where} {told}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for key, inner in value.items():
            if key in known:
                yield from _faults(inner, known[key], root, f"{at}.{key}" if at else str(key))
            elif schema.get("additionalProperties") is False:
                yield f"{where} has {key!r}, which is not one of {', '.join(known)}"
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value, 1):
            yield from _faults(inner, schema["items"], root, f"{where}[{number}]")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _article(kind: str) -> str:
    return {"object": "a mapping", "array": "a list", "string": "text", "boolean": "true or false"}.get(
        kind, "a whole number" if kind == "integer" else "a number"
    )


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _required(value: Any, wanted: list[str]) -> str:
    missing = [key for key in wanted if isinstance(value, dict) and key not in value]
    return f"lacks {', '.join(missing)}" if missing else ""


def _pattern(value: Any, wanted: str) -> str:
    wrong = isinstance(value, str) and not re.search(wanted, value)
    return f"is {value!r}; expected to match {wanted}" if wrong else ""


def _enum(value: Any, wanted: list[Any]) -> str:
    return "" if value in wanted else f"is {value!r}; expected one of {', '.join(map(str, wanted))}"


def _minimum(value: Any, wanted: float) -> str:
    return f"is {value}; expected {wanted} or more" if isinstance(value, (int, float)) and value < wanted else ""


def _least(value: Any, wanted: int) -> str:
    return "is empty" if isinstance(value, (str, list, dict)) and len(value) < wanted else ""


def _names(value: Any, wanted: Mapping[str, Any]) -> str:
    wrong = [str(key) for key in value if not re.search(wanted["pattern"], str(key))] if isinstance(value, dict) else []
    return f"has {', '.join(wrong)}; names are expected to match {wanted['pattern']}" if wrong else ""


_CHECKS: Mapping[str, Callable[[Any, Any], str]] = {
    "required": _required,
    "pattern": _pattern,
    "enum": _enum,
    "minimum": _minimum,
    "minLength": _least,
    "minItems": _least,
    "minProperties": _least,
    "propertyNames": _names,
}
