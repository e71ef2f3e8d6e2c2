# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where the image itself is at fault, or what its compiler kept. Pure."""

from __future__ import annotations

import re

from .case import Case
from .phrases import Words, cut, setting, variable

#: Where the module mounts the folder of the engine's compile caches (container/mounts.py ENGINE_CACHE).
_INSIDE = "/root/.cache/vllm"
#: Folders of compilers, as a log names them.
_FOLDER = r"~?/[^\s'\"]*/(?:torch_compile_cache|\.?triton/cache|inductor|vllm/triton)\b"


def broken(case: Case) -> Words:
    text = case.text
    image = case.context.image_name
    what = cut(case.said())
    package = re.search(r"pip install (?:-U |--upgrade )?[`'\"]?(?P<name>[\w.\[\]=<>~-]*\w)", text) or re.search(
        r"No module named '(?P<name>[\w.]+)'|packages? `(?P<other>[\w.-]+)` is required", text
    )
    name = next((value for value in package.groups() if value), "") if package else ""
    if name and "." not in name and not name.startswith(("vllm", "torch", "triton", "aiter")):
        return (
            f"{image[0].upper()}{image[1:]} lacks the Python package {name} ({what})",
            f"Choose a newer image (`vllm_image_tag`), or build one from it with {name} installed",
        )
    header = re.search(r"fatal error: (?P<name>[\w./+-]+): No such file or directory", text)
    if header:
        return (
            f"{image[0].upper()}{image[1:]} lacks {header['name']}, with which PyTorch compiles C++ ({what})",
            "Choose a newer image (`vllm_image_tag`), or build one from it with "
            + ("Python's headers" if header["name"] == "Python.h" else "this header")
            + " installed",
        )
    remedy = "Choose another image (`vllm_image_tag`), for its parts do not fit each other"
    seen = "\n".join([text, *case.stack])
    if "/aiter/" in seen:
        remedy += f", or until then switch AITER off with {variable(VLLM_ROCM_USE_AITER=0)}"
    elif re.search(r"triton|_inductor|hip runtime|architecture for which", seen):
        remedy += f", or until then run without compiling with {setting(enforce_eager='true')}"
    return f"A part of {image} cannot be loaded ({what})", remedy


def compile_cache(case: Case) -> Words:
    what = cut(case.said())
    if any("/aiter/" in frame for frame in case.stack[-6:]):
        return (
            f"Files that AITER wrote in the container cannot be used ({what}), and the weights are fine",
            f"Remove the container (`docker rm {case.context.container}` on the node), and with it these files, and "
            "run again",
        )
    paths = (match for line in reversed(case.run.lines) if "/" in line and (match := re.search(_FOLDER, line)))
    path = next((match.group(0) for match in paths), _INSIDE)
    where, ours = f"{path} in the container", path.startswith((_INSIDE, "~"))
    if ours and case.context.engine_cache:
        # All of it: what else is in there is made again, too.
        where = f"{case.context.engine_cache} on the node"
    elif ours:
        where += " (its folder on the node is in /var/lib/vllm-fleet/engine-cache, `docker inspect` names it)"
    return (
        f"What the compiler kept of an earlier start cannot be used ({what}), and the weights are fine",
        f"Remove {where}, and start again, or do without it with {variable(VLLM_DISABLE_COMPILE_CACHE=1)}",
    )
