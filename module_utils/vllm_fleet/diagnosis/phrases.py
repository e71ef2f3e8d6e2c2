# SPDX-License-Identifier: Apache-2.0
"""Parts of sentences that the causes and remedies of several failures share. Pure.

Causes and remedies are one sentence without its full stop; a remedy begins with a verb.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from .case import Case

#: Brings and checks the model's files and the image, and stops nothing.
STAGE = "`ansible-playbook deploy.yml -i INVENTORY --tags stage`"

#: Cause and remedy.
Words = tuple[str, str]
Explain = Callable[[Case], Words]


def setting(**args: object) -> str:
    """Return flags as the user writes them in the inventory."""
    inner = ", ".join(f"{name.replace('_', '-')}: {value}" for name, value in args.items())
    return f"`vllm_server_args: {{{inner}}}`"


def variable(**env: object) -> str:
    """Return environment variables as the user writes them in the inventory."""
    return f"`vllm_server_env: {{{', '.join(f'{name}: {value}' for name, value in env.items())}}}`"


def listed(words: Sequence[object]) -> str:
    """Return ``a, b and c``."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def floored(share: float) -> float:
    """Return two digits that are never more than ``share``: 0.8582 is 0.85.

    The small term undoes binary rounding, for 0.29 * 100 is 28.999….
    """
    return math.floor(share * 100 + 1e-9) / 100


def cut(text: str, length: int = 180) -> str:
    """Return the first sentence of an error's words, as a part of a sentence of ours."""
    text = re.split(r"[.!?]+\s+(?=[A-Z`'\"\d])|\n", text.strip(), maxsplit=1)[0]
    # Lists such as `[ 1, 2 ]` and empty calls would read like a value that is missing.
    text = re.sub(r"([(\[{])\s+", r"\1", re.sub(r"\s{2,}", " ", text)).replace("()", "").rstrip(" .:")
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
