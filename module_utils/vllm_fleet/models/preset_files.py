# SPDX-License-Identifier: Apache-2.0
"""The presets of models/*.yml: read, and checked by models/schema.json. For the controller, which has jsonschema.

The schema says what a preset may hold; figures that must agree with each other are checked by presets.py.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from . import presets

# libyaml is ten times faster where PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_KINDS: Mapping[str, str] = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


class PresetError(Exception):
    """A file of a folder of presets is wrong; the message names the file and each fault."""


def read(folder: Path, schema: Path, note: Path | None = None) -> Mapping[str, Mapping[str, Any]]:
    """Return the presets of a folder by model id, each with the name of its `file`; variants by their own ids, too.

    They are read once a process, and again when a file has changed: every host of a play asks several times. ``note``
    remembers, by their hash, which files an earlier run found right: to judge them takes as long as all else that a
    filter loads. Raises PresetError for a file that is no preset, and for a second one of the same model.
    """
    files = tuple((str(file), file.stat().st_mtime_ns) for file in sorted(folder.glob("*.yml")))
    return _read(files, schema, note)


@functools.lru_cache(maxsize=8)
def _read(files: tuple[tuple[str, int], ...], schema: Path, note: Path | None) -> Mapping[str, Mapping[str, Any]]:
    rules = schema.read_bytes()
    try:
        texts = {file: Path(file).read_bytes() for file, _ in files}
    except OSError as error:
        raise PresetError(f"{error.filename} cannot be read: {error.strerror}") from error
    judges = [Path(one).read_bytes() for one in (__file__, presets.__file__)]
    digest = hashlib.sha256(repr((judges, rules, texts)).encode()).hexdigest()
    known = _noted(note) == digest
    found: dict[str, Mapping[str, Any]] = {}
    for file, text in texts.items():
        try:
            content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe one
        except yaml.YAMLError as error:
            raise PresetError(f"{file} is no YAML: {error}") from error
        if wrong := [] if known else faults(content, json.loads(rules)):
            raise PresetError(f"{file}: {'; '.join(wrong)}. docs/models.md says what a preset looks like.")
        own = {**content, "file": Path(file).name}
        for one in (own, *(presets.resolved(own, name) for name, _ in presets.own_models(own))):
            if one["model"] in found:
                raise PresetError(f"{file}: {one['model']} has a preset already; keep one of the two files.")
            found[one["model"]] = one
    if note and not known:
        with contextlib.suppress(OSError):  # without it the next run judges them again
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(digest, encoding="ascii")
    return found


def _noted(note: Path | None) -> str:
    try:
        return note.read_text(encoding="ascii") if note else ""
    except (OSError, ValueError):
        return ""


def faults(preset: Any, rules: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one file's content, a clause each with its place; `rules` is the parsed schema."""
    return schema_faults(preset, rules) or presets.faults(preset)


def schema_faults(value: Any, rules: Mapping[str, Any]) -> list[str]:
    """Return what JSON Schema finds wrong with `value`, a clause each with its place. Raises PresetError."""
    try:  # here and not above: it takes longer than all that the filters load, and the files are read once a process
        from jsonschema import Draft202012Validator  # noqa: PLC0415
    except ImportError as error:
        raise PresetError(
            "Presets of models are checked with jsonschema, which the controller's Python does not have; "
            "install requirements.txt there."
        ) from error
    found = (_clause(error) for error in Draft202012Validator(rules).iter_errors(value))
    return list(dict.fromkeys(found))


def _clause(error: Any) -> str:
    """Return one error of jsonschema as a clause, such as `verify[1].expect is empty`."""
    where = _place(error.absolute_path) or "the file"
    if "propertyNames" in error.absolute_schema_path:
        return f"{where} has {error.instance}; names are expected to match {error.validator_value}"
    clause = _CLAUSES.get(error.validator)
    detail = clause(error.instance, error.validator_value, error.schema) if clause else f"is wrong ({error.message})"
    return f"{where} {detail}"


def _unknown(value: Mapping[str, Any], _wanted: Any, schema: Mapping[str, Any]) -> str:
    known = schema["properties"]
    return f"has {', '.join(repr(key) for key in value if key not in known)}, which is not one of {', '.join(known)}"


def _empty(_value: Any, _wanted: int, _schema: Any) -> str:
    return "is empty"


#: For each keyword that models/schema.json uses: what is wrong with a value, what was wanted, in which schema.
_CLAUSES: Mapping[str, Callable[[Any, Any, Any], str]] = {
    "type": lambda value, wanted, _: f"is {_shown(value)}; expected {_kinds(wanted)}",
    "required": lambda value, wanted, _: f"lacks {', '.join(key for key in wanted if key not in value)}",
    "additionalProperties": _unknown,
    "pattern": lambda value, wanted, _: f"is {value!r}; expected to match {wanted}",
    "enum": lambda value, wanted, _: f"is {value!r}; expected one of {', '.join(map(str, wanted))}",
    "minimum": lambda value, wanted, _: f"is {value}; expected {wanted} or more",
    "minLength": _empty,
    "minItems": _empty,
    "minProperties": _empty,
}


def _kinds(wanted: str | list[str]) -> str:
    return " or ".join(_KINDS.get(one, one) for one in ([wanted] if isinstance(wanted, str) else wanted))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _place(path: Iterable[str | int]) -> str:
    """Return a path as a person writes it, counted from 1: `verify[1].expect`."""

    def parts() -> Iterator[str]:
        for part in path:
            yield f"[{part + 1}]" if isinstance(part, int) else f".{part}"

    return "".join(parts()).lstrip(".")
