# SPDX-License-Identifier: Apache-2.0
"""The table of kinds: it is sound by itself, and a sign that asks for more comes before one that asks for less."""

from __future__ import annotations

import re

import pytest

from ansible.module_utils.vllm_fleet.diagnosis.families import kind_of, thrown
from ansible.module_utils.vllm_fleet.diagnosis.kinds import KINDS, LIBRARIES, Sign

SIGNS = [sign for kind in KINDS for sign in kind.signs]
LIB = "/usr/local/lib/python3.12/dist-packages"


def test_each_sign_asks_for_something_that_there_is() -> None:
    names = {name for name, _ in LIBRARIES}
    for sign in SIGNS:
        assert sign != Sign()
        assert set(sign.library.split()) <= names
        for pattern in (sign.type, sign.function, sign.words):
            re.compile(pattern)


def test_no_sign_is_hidden_by_one_that_asks_for_less() -> None:
    for number, later in enumerate(SIGNS):
        for earlier in SIGNS[:number]:
            libraries = not earlier.library or (
                bool(later.library) and set(later.library.split()) <= set(earlier.library.split())
            )
            rest = all(
                not getattr(earlier, name) or getattr(earlier, name) == getattr(later, name)
                for name in ("type", "function", "words")
            )
            assert not (libraries and rest), (earlier, later)


@pytest.mark.parametrize(
    ("frames", "text", "class_"),
    [
        ([("aiter/jit/core.py", "get_module")], "EOFError", "compile_cache"),
        ([("aiter/ops/moe.py", "run")], "RuntimeError: wrong shape", "kernel_unsupported"),
        ([("vllm/v1/attention/a.py", "forward")], "AssertionError", "kernel_unsupported"),
        ([("vllm/v1/attention/a.py", "plan")], "ValueError: what is it", None),
        ([("vllm/model_executor/models/x.py", "load_weights")], "KeyError: 'a'", "weights_mismatch"),
        ([("vllm/model_executor/models/x.py", "forward")], "KeyError: 'a'", "unsupported_architecture"),
        # A module that is imported fails by the image; a program's own first line does not.
        ([("run.py", "main"), ("acme/x.py", "<module>")], "NameError: a", "broken_image"),
        ([("run.py", "<module>")], "NameError: a", None),
        # The innermost library decides, and frames of others do not.
        ([("triton/a.py", "run"), ("torch/nn/a.py", "call")], "IndexError", "kernel_unsupported"),
        ([("vllm/v1/worker/a.py", "run")], "IndexError", None),
        ([], "torch._inductor.exc.InductorError: ImportError: cannot import name 'x'", "broken_image"),
    ],
)
def test_a_kind_by_its_signs(frames: list[tuple[str, str]], text: str, class_: str | None) -> None:
    stack = [f'File "{LIB}/{path}", line 7, in {function}' for path, function in frames]
    kind = kind_of(thrown(stack, text))
    assert (kind and kind.class_) == class_
