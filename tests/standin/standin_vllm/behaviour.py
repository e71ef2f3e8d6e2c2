# SPDX-License-Identifier: Apache-2.0
"""The made-to-order behaviour: environment variables STANDIN_*, one field each (README.md has the list for readers)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

PREFIX = "STANDIN_"
STAGES = ("config", "engine", "load", "shards", "loaded", "compile", "kv_cache", "graphs", "api")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How this run differs from a healthy server that is ready at once. Seconds where nothing else is said."""

    start_seconds: float = 0.3
    shards: int = 4
    stage_silent: str = ""
    silent_seconds: float = 0.0
    busy_cpu: bool = False
    grow_file: str = ""
    fail_at: str = ""
    fail_log: str = ""
    fail_text: str = ""
    fail_exit: int = 1
    fail_linger: float = 0.0
    fail_if: str = ""
    nonsense: bool = False
    wrong_share: float = 0.0
    empty: bool = False
    serve_model: str = ""
    never_healthy: bool = False
    die_after: float = 0.0
    die_exit: int = 0
    ignore_term: bool = False
    token_delay: float = 0.0
    prompt_delay: float = 0.0
    drop_stream: str = ""
    hang_request: str = ""
    control: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Behaviour:
        """Read STANDIN_*; a misspelt name or value is a ValueError, so that a test cannot pass by a typo."""
        environ = os.environ if environ is None else environ
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, object] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            field = fields.get(name.removeprefix(PREFIX).lower())
            if field is None:
                known = ", ".join(PREFIX + known.upper() for known in fields)
                raise ValueError(f"unknown variable {name}; known are {known}")
            values[field.name] = _convert(name, text, type(field.default))
        behaviour = cls(**values)  # type: ignore[arg-type]
        for stage in filter(None, (behaviour.stage_silent, behaviour.fail_at)):
            if stage not in STAGES:
                raise ValueError(f"unknown stage {stage!r}; known are {', '.join(STAGES)}")
        if (behaviour.fail_log or behaviour.fail_text) and not behaviour.fail_at:
            behaviour = dataclasses.replace(behaviour, fail_at="config")
        if behaviour.fail_if and os.path.exists(behaviour.fail_if):  # noqa: PTH110  one call, at the start
            behaviour = dataclasses.replace(behaviour, fail_at=behaviour.fail_at or "config")
        return behaviour


def _convert(name: str, text: str, kind: type) -> object:
    if kind is bool:
        if text not in ("", "0", "1"):
            raise ValueError(f"{name} must be 0 or 1, got {text!r}")
        return text == "1"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {kind.__name__}, got {text!r}") from None
