# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where a GPU kernel is missing, refuses its input, or faults. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..vllm.log import parse
from .case import Case, Context, Run
from .phrases import Words, cut, setting, variable

#: AITER's switches in vLLM, by what names its kernels (0.32.0 envs.py). The first that fits is taken.
_SWITCHES = (
    (r"mla", "VLLM_ROCM_USE_AITER_MLA"),
    (r"moe|expert", "VLLM_ROCM_USE_AITER_MOE"),
    (r"rms_?norm|layer_?norm", "VLLM_ROCM_USE_AITER_RMSNORM"),
    (
        r"unified_attention|paged_att|flash_att|fmha|(?<![a-z])mha|pa_(?:fwd|decode|ragged)|asm_pa",
        "VLLM_ROCM_USE_AITER_MHA",
    ),
    (r"bmm", "VLLM_ROCM_USE_AITER_FP8BMM"),
    (r"gemm|linear|hipb_mm", "VLLM_ROCM_USE_AITER_LINEAR"),
)
#: Lines of a log's end that may name the kernel that ran before a fault.
_NEAR = 40


def _aiter_switch(text: str) -> str:
    """Return the switch of the AITER kernel that a text names, or an empty string where it names no AITER."""
    if not re.search(r"(?i)aiter|ck_moe|ck_gemm|asm_mla", text):
        return ""
    return next((switch for pattern, switch in _SWITCHES if re.search(pattern, text.lower())), "VLLM_ROCM_USE_AITER")


def _steps(text: str, context: Context) -> list[str]:
    """Return what may help, the most exact first. ``text`` holds words and frames."""
    if re.search(r"(?i)custom_?all_?reduce|IpcGetMemHandle|IpcOpenMemHandle", text):
        return [f"set {setting(disable_custom_all_reduce='true')}"]
    steps: list[str] = []
    switch = _aiter_switch(text)
    if switch:
        steps.append(f"set {variable(**{switch: 0})}")
    dtype = str(context.arg("kv-cache-dtype") or "")
    if dtype.startswith("fp8") and re.search(r"(?i)mla|attention|kv_|fp8", text):
        steps.append(f"remove kv-cache-dtype (now {dtype}) from `vllm_server_args`")
    backend = context.arg("attention-backend")
    if backend and re.search(r"(?i)attention|attn|mla", text):
        steps.append(f"remove attention-backend (now {backend}) from `vllm_server_args`")
    elif not switch and re.search(r"(?i)/attention/|attn|\bblock size\b", text):
        advised = re.search(r"--attention-backend[= ](\w+)", text)  # vLLM's own advice
        other = advised[1] if advised else "ROCM_ATTN" if "triton" in text.lower() else "TRITON_ATTN"
        steps.append(f"choose another backend with {setting(attention_backend=other)}")
    if switch and switch != "VLLM_ROCM_USE_AITER":
        steps.append(f"switch AITER off with {variable(VLLM_ROCM_USE_AITER=0)}")
    return steps


def _either(steps: Sequence[str]) -> str:
    """Return a sentence of alternatives."""
    text = ", or ".join(steps)
    return text[:1].upper() + text[1:]


def _seen(case: Case) -> str:
    """The words of the error and the frames that led to it, the innermost last."""
    return "\n".join([*case.stack[-4:], case.text])


def _compiler(case: Case) -> str:
    """What Triton's compiler printed when it gave up. It is on another stream than the traceback, so in any place."""
    for line in reversed(case.run.lines):
        if "error: " not in line:
            continue
        found = re.search(r"(?:^|[\s:])error: (?P<what>[^\n]{5,200})", line)
        if found and not parse(line).level:
            return found["what"]
    return ""


def unsupported(case: Case) -> Words:
    said = case.said()
    what = cut((_compiler(case) if "PassManager" in said else "") or said)
    seen = _seen(case)
    cause = "A GPU kernel cannot compute this model with these settings on this GPU"
    cause += f" ({what})" if what else ""
    steps = _steps(seen, case.context)
    if re.search(r"(?i)mxfp4|quant|fp4|gptq|awq|int4|int8", seen):
        if not steps and "mxfp4" in seen.lower():
            steps.append(f"set {variable(VLLM_ROCM_USE_AITER=1)}")
        steps.append("choose a version of the model in another format")
    elif not steps and "out of resource" in seen:
        steps.append(f"try AITER's kernels with {variable(VLLM_ROCM_USE_AITER=1)}")
    steps.append("choose a newer image (`vllm_image_tag`)")
    return cause, _either(steps)


def not_compiled(case: Case) -> Words:
    what = cut(case.said())
    return (
        f"PyTorch could not compile the model ({what})",
        f"Choose a newer image (`vllm_image_tag`), or until then run without compiling with "
        f"{setting(enforce_eager='true')} (slower)",
    )


def no_backend(case: Case) -> Words:
    backend = case.get("backend")
    given = case.context.arg("attention-backend")
    remove = (
        f"Remove attention-backend (now {given}) from `vllm_server_args`"
        if given
        else "Remove VLLM_ATTENTION_BACKEND and VLLM_ROCM_USE_AITER from `vllm_server_env` if they are set"
    )
    others = [name for name in ("TRITON_ATTN", "ROCM_AITER_UNIFIED_ATTN") if name != backend]
    return (
        f"The attention backend {backend} cannot run this model with these settings"
        + (f" ({cut(case.get('why'))})" if case.get("why") else ""),
        f"{remove}, or choose another, for example {setting(attention_backend=others[0])}",
    )


def died(case: Case) -> Words:
    """Explain an engine that a kernel's exception ended while it served."""
    what = cut(case.said())
    return f"The engine process died while it served: {what}", _either(
        [*_steps(_seen(case), case.context), "choose a newer image (`vllm_image_tag`)"]
    )


def fault(case: Case) -> Words:
    """Explain a fault of a GPU or of native code by what ran before it."""
    what = cut(case.get("what"), 200)
    run, context = case.run, case.context
    cause = f"The engine process died while it {'served' if run.ready else 'started'}: {what}"
    if re.search(r"(?i)gpu hang|gpu reset|hw exception", what):
        return cause, (
            "Read `dmesg -T | grep -i amdgpu`, reset the GPU or reboot the node, and have the GPU checked if it "
            "happens again"
        )
    free = re.search(r"Available Free mem ?: ?(\d+) MB", case.text)
    if free and int(free.group(1)) < 2048:
        return (
            f"{cause}, with {free.group(1)} MB of GPU memory free, so the memory ran out",
            "Lower gpu-memory-utilization by 0.03, max-num-batched-tokens or max-num-seqs in `vllm_server_args`",
        )
    before = _kernel_before(case)
    seen = f"{before and f'aiter {before}'}\n{_seen(case)}"
    if context.arg("attention-backend"):
        seen += "\n/attention/"  # a backend that was chosen by hand is the first to be doubted
    steps = _steps(seen, context)
    capturing = not run.ready and _captures(run)
    if capturing or "captur" in what:
        cause += ", while graphs were captured"
        steps.append(f"leave graphs out with {setting(enforce_eager='true')} (slower)")
    if capturing and not context.arg("attention-backend") and not before:
        steps.append(f"choose another attention backend with {setting(attention_backend='TRITON_ATTN')}")
    if before:
        cause += f", after AITER's kernel {before}"
    if not steps and run.ready:
        return cause, (
            "Check `dmesg -T` for GPU faults and killed processes, start the server again if the restart policy has "
            "not, and choose a newer image (`vllm_image_tag`) if it happens again"
        )
    if not steps:
        return cause, (
            "Check `dmesg -T` for GPU faults and killed processes, and if there are none, choose a newer image "
            f"(`vllm_image_tag`), or leave compiling and graphs out with {setting(enforce_eager='true')} (slower)"
        )
    return cause, (
        _either([*steps, "choose a newer image (`vllm_image_tag`)"])
        + " (`dmesg -T` shows whether the GPU itself is at fault)"
    )


def _captures(run: Run) -> bool:
    """Say whether graphs were being captured; bars are on another stream than what is logged."""
    began = any("Capturing" in line and "graph" in line for line in run.lines)
    return began and not any("Graph capturing finished" in line for line in run.lines)


def _kernel_before(case: Case) -> str:
    """The last AITER kernel that was loaded before the fault, from the lines of the same stream."""
    at = case.error.index if case.error is not None else len(case.run.lines)
    for line in reversed(case.run.lines[max(0, at - _NEAR) : at]):
        found = re.search(r"\[aiter\] LoadKernel: (?:_ZN5aiter\d+)?(?P<name>\w{3,80})", line)
        if found:
            return found["name"]
    return ""
