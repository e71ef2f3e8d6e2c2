# SPDX-License-Identifier: Apache-2.0
"""Flags of vLLM in the inventory, by the release that the image's tag names: for images that no node has yet. Pure.

An image that is there says itself what it takes (`server/observe.py`); what it says is never doubted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.alike import nearest
from ..common.finding import Finding
from ..vllm import release_data, releases
from ..vllm.cli import RESERVED_FLAGS, CommandError, normalise_args

WHAT = "vLLM flags"
#: How alike a flag must be to be named as the one that was meant.
_ALIKE = 0.7
_CERTAIN = 0.85
_BY_IMAGE = "checked when the image is there"


def judge(args: Mapping[str, Any], tag: str) -> list[Finding]:
    """Return the findings on the user's ``args`` for an image of this tag that was not asked."""
    try:
        flags = {name: value for name, value in normalise_args(args).items() if value is not None}
    except CommandError as error:
        return [Finding("refused", "vllm_server_args", "flags of vLLM", str(error), "correct it")]
    names = [name for name in flags if not name.startswith("-")]
    if not names:
        return []
    if not releases.known(tag):
        got = (
            f"not checked: the image was not asked, and {f'its tag {tag}' if tag else 'no tag'} names no known release"
        )
        remedy = "run preflight again when the image is on the node (--tags stage brings it)"
        return [Finding("unknown", WHAT, "flags of the image's vLLM", got, remedy)]
    wrong = [one for name in names if (one := _wrong(name, tag))]
    if wrong:
        got = ", ".join(name for name, _ in wrong)
        steps = "; ".join(dict.fromkeys(step for _, step in wrong))
        remedy = f"{steps} (vllm_server_args); of an image with flags of its own, preflight_accept: [{WHAT}]"
        return [Finding("refused", WHAT, f"flags of vLLM {tag}", got, remedy)]
    got = f"{len(names)} known by name; their values are {_BY_IMAGE}"
    return [Finding("unknown", WHAT, f"flags of vLLM {tag}", got, "")]


def written_as_variable(name: str) -> str:
    """Return the flag that stands behind `vllm_server_` in a variable's name, slips too; empty where none does."""
    flag = name.removeprefix("vllm_server_").replace("_", "-")
    if flag == name:
        return ""
    flags = releases.FLAGS.difference(RESERVED_FLAGS)
    # Of a single word much is a slip.
    return flag if flag in flags else nearest(flag, flags, least=_CERTAIN) if "-" in flag else ""


def _wrong(name: str, tag: str) -> tuple[str, str] | None:
    """Return what to show of a flag that no release or this one has not, and what to do; None where it is known.

    What came later is a warning of the model's sizing.
    """
    head = name.partition(".")[0]
    on = head.removeprefix("no-")
    gone = release_data.FLAGS_GONE.get(head) or release_data.FLAGS_GONE.get(on)
    if gone and (not gone.release or not releases.older(tag, gone.release)):
        return f"{name} (gone{f' since {gone.release}' if gone.release else ''})", gone.instead
    if head in releases.FLAGS or on in releases.FLAGS:
        return None
    near = nearest(on, (one for one in releases.FLAGS if one not in RESERVED_FLAGS), least=_ALIKE)
    step = f"write {near} for {name}" if near else f"take {name} out: no release up to {release_data.NEWEST} has it"
    return name, step
