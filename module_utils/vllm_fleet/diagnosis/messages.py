# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy of each known failure, in words, out of what its pattern has matched. Pure.

Causes and remedies are one sentence without its full stop; a remedy begins with a verb.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence

from .case import Case, Gpu, Holder

GIB = 2**30

#: What container/engine.py says where Docker did not answer at all.
NO_ANSWER = "the Docker engine did not answer"

#: Brings and checks the model's files and the image, and stops nothing.
STAGE = "`ansible-playbook deploy.yml --tags stage`"

#: Cause and remedy.
Words = tuple[str, str]
Explain = Callable[[Case], Words]


# Parts of sentences ----------------------------------------------------------------------------------------------


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


def _whole(number: str) -> int:
    return int(float(number.replace(",", "")))


def _named(holder: Holder) -> str:
    command = f" `{holder.command}`" if holder.command else ""
    place = f" in container `{holder.container}`" if holder.container else ""
    return f"pid {holder.pid}{command}{place}" + (f" with {holder.size / GIB:.2f} GiB" if holder.size else "")


# Memory of the GPU -----------------------------------------------------------------------------------------------


def memory_taken(case: Case) -> Words:
    free, total, need = (float(case.get(name)) for name in ("free", "total", "need"))
    cpu = case.get("kind") == "CPU"
    gpus = [] if cpu else [Gpu(*gpu) for gpu in case.context.gpus or ()]
    # The number in vLLM's line counts within the process (ranks, HIP_VISIBLE_DEVICES); free memory shows which it is.
    gpu = min(gpus, key=lambda gpu: abs(gpu.free / GIB - free), default=None)
    holders = sorted((Holder(*h) for h in gpu.holders), key=lambda h: -(h.size or 0)) if gpu else []
    others = f" ({listed([*map(_named, holders[:3]), *(['others'] if len(holders) > 3 else [])])})" if holders else ""
    device = f" {case.get('device')}" if case.get("device") else ""
    memory = f"memory of NUMA node{device}" if cpu else "GPU memory" + (f" on{device}" if device else "")
    cause = (
        f"{total - free:.2f} of {total:.2f} GiB of {memory} are taken by others{others}, so only {free:.2f} GiB are "
        f"free where gpu-memory-utilization {case.get('want')} needs {need:.2f} GiB"
    )
    share = free / total
    if gpus and case.context.world >= len(gpus):
        share = min([share, *(gpu.free / gpu.total for gpu in gpus if gpu.total)])
    fits = floored(share)
    if len(holders) == 1:
        stop = f"Stop pid {holders[0].pid}" + (
            f" (`docker stop {holders[0].container}`)" if holders[0].container else ""
        )
    elif holders:
        stop = "Stop those processes"
    elif cpu:
        stop = "Stop other programs on the node"
    else:
        stop = f"Stop what holds it (`ansible {case.context.host or 'HOST'} -m rocm_info` names the processes)"
    if fits < float(case.get("want")) / 2:
        return cause, f"{stop}, for what is free now allows no more than gpu-memory-utilization {fits:.2f}"
    lower = setting(gpu_memory_utilization=f"{fits:.2f}")
    remedy = f"{stop}, or set {lower}, the highest that fits now ({fits * total:.2f} GiB)"
    return cause, remedy if cpu else f"{remedy}, which `vllm_server_gpu_memory_policy: fit` does by itself"


def memory_moved(case: Case) -> Words:
    return (
        f"Another process gave GPU memory back while vLLM measured it ({case.get('before')} GiB were free, then "
        f"{case.get('after')} GiB), so the measurement is not reliable",
        f"Make sure that nothing else uses these GPUs (`ansible {case.context.host or 'HOST'} -m rocm_info` names "
        "the processes), and run again",
    )


def out_of_memory(case: Case) -> Words:
    reached = case.run.progress()
    room = ""
    if case.get("asked"):
        room = f" ({case.get('asked')} more were asked for, and GPU {case.get('gpu')} had {case.get('left')} of its "
        room += f"{case.get('total')} free)"
    other = re.search(r"Process (\d+) has ([\d.]+ \wiB) memory in use", case.text)
    if other:
        room += f", of which process {other.group(1)} holds {other.group(2)}"
    if reached.facts.weights_gib is not None or reached.stage in (
        "compiling",
        "allocating kv cache",
        "capturing graphs",
    ):
        less = floored(case.context.share - 0.05)
        return (
            f"The weights fit into GPU memory, but the working memory beside them does not{room}",
            f"Compute less at once with {setting(max_num_seqs=128, max_num_batched_tokens=4096)}, or leave more "
            f"beside the KV cache with {setting(gpu_memory_utilization=f'{less:.2f}')}",
        )
    size, count = case.context.size("tensor-parallel-size"), len(case.context.gpus or ())
    if count and size * 2 > count:
        remedy = (
            f"Serve a quantised version of it, or spread it over several nodes (tensor-parallel-size is {size}, and "
            f"this node has {count} GPUs)"
        )
    else:
        remedy = f"Spread it over more GPUs with {setting(tensor_parallel_size=size * 2)} (now {size}), or serve a "
        remedy += "quantised version of it"
    return f"The weights of {case.context.model_name} do not fit into GPU memory{room}", remedy


def _raise_budget(case: Case) -> str:
    size = case.context.size("tensor-parallel-size")
    return f"raise gpu-memory-utilization (now {case.context.share:g}) or tensor-parallel-size (now {size})"


def cache_below_context(case: Case) -> Words:
    wanted = _whole(case.get("wanted"))
    needs = "does not fit into the KV cache"
    if case.get("need"):
        needs = f"needs {case.get('need')} GiB of KV cache, and {case.get('have')} GiB are left beside the weights"
    cause = f"One request of the full context of {wanted} tokens {needs}"
    longest = case.get("longest")
    if not longest:
        return cause, f"Lower max-model-len (now {wanted}) in `vllm_server_args`, or {_raise_budget(case)} there"
    return cause, f"Set {setting(max_model_len=_whole(longest))}, the longest that fits, or {_raise_budget(case)}"


def no_cache(case: Case) -> Words:
    facts = case.run.progress().facts
    known = [
        f"the weights take {facts.weights_gib:g} GiB per GPU" if facts.weights_gib is not None else "",
        f"{facts.kv_cache_gib:g} GiB are left" if facts.kv_cache_gib is not None else "",
    ]
    numbers = " and ".join(number for number in known if number)
    remedy = _raise_budget(case)
    return (
        f"Weights and working memory use up all that gpu-memory-utilization {case.context.share:g} grants, and "
        "nothing is "
        "left for the KV cache" + (f" ({numbers})" if numbers else ""),
        f"{remedy[0].upper()}{remedy[1:]} in `vllm_server_args`, or lower max-num-batched-tokens there",
    )


def cpu_cache(case: Case) -> Words:
    free = float(case.get("free"))
    return (
        f"The KV cache was to take {case.get('need')} GiB of CPU memory, and {free:.2f} GiB are available",
        f"Set {variable(VLLM_CPU_KVCACHE_SPACE=max(1, int(free) - 1))} (GiB), or free memory on the node",
    )


def context_too_long(case: Case) -> Words:
    longest = _whole(case.get("longest"))
    return (
        f"max-model-len {_whole(case.get('wanted'))} is more than the {longest} tokens that "
        f"{case.context.model_name} was made for",
        f"Set {setting(max_model_len=longest)} or less, or leave it out",
    )


# The model and its files -----------------------------------------------------------------------------------------


def _repo(case: Case) -> str:
    return case.get("repo") or case.context.model_name


def _revision(case: Case) -> str:
    revision = case.context.arg("revision")
    return f" at revision {revision}" if revision else ""


def gated(case: Case) -> Words:
    repo = _repo(case)
    return (
        f"{repo} is gated, and no token was given that opens it",
        f"Accept the licence at https://huggingface.co/{repo} with the account that owns the token, and set "
        "`hf_token` to it in the vault",
    )


def files_missing(case: Case) -> Words:
    if case.get("count"):
        missing = f"{case.get('count')} file(s) are missing: {case.get('files')}"
    elif case.get("tensors"):
        missing = f"its files lack weights such as {case.get('tensors').split(', ')[0]}, so a shard must be missing"
    elif case.get("file"):
        missing = f"{case.get('file')} is missing"
    else:
        missing = "it holds no weights"
    return (
        f"The copy of {case.context.model_name}{_revision(case)} on the node is incomplete ({missing})",
        f"Complete it with {STAGE}, which checks every file",
    )


def not_cached(case: Case) -> Words:
    return (
        f"{case.context.model_name}{_revision(case)} is not in the cache that the container sees, and downloads are "
        "switched off",
        f"Stage it with {STAGE}, and check that `hf_cache_path` and `vllm_server_revision` are what it was staged with",
    )


def not_reached(case: Case) -> Words:
    return (
        f"{case.context.model_name}{_revision(case)} is not in the cache that the container sees, and the Hub cannot "
        "be reached from the node",
        f"Stage it with {STAGE} (`hf_cache_source: controller` needs no way out of the node), or open the way to "
        "huggingface.co",
    )


def no_folder(case: Case) -> Words:
    path = case.get("path")
    if not path.startswith(("/", ".", "~")):
        return no_repo(case)
    return (
        f"The model {path} is no folder in the container",
        f"Mount the folder that holds the model's config.json at {path} (`vllm_server_volumes`), or set "
        "`vllm_server_model` to a Hub id",
    )


def no_config(case: Case) -> Words:
    path = case.get("path")
    if not path.startswith(("/", ".", "~")):
        return no_repo(case)
    return (
        f"The folder {path} holds no model that vLLM can read (no config.json and no params.json)",
        f"Check what is mounted at {path}, or set `vllm_server_model` to a Hub id",
    )


def no_revision(case: Case) -> Words:
    return (
        f"{_repo(case)} has no such revision{_revision(case).replace(' at revision', ' as')}",
        "Set `vllm_server_revision` to a commit that the model's page lists under Files and versions",
    )


def no_repo(case: Case) -> Words:
    return (
        f"The Hub has no model {case.get('repo') or case.get('path') or case.context.model_name}, or it is private "
        "and the token does not open it (the Hub answers both alike)",
        "Compare `vllm_server_model` letter by letter with the model's page, and set `hf_token` if the model is "
        "private",
    )


def corrupt(how: str) -> Explain:
    def explain(case: Case) -> Words:
        return (
            f"A weight file of {case.context.model_name} {how}",
            "Find it with `hf_snapshot` (`state: verified`, `verify: full`), which compares checksums, and bring it "
            f"again with {STAGE}",
        )

    return explain


def remote_code(case: Case) -> Words:
    return (
        f"{case.context.model_name} brings Python code of its own, which vLLM does not run by default",
        f"Read that code, and if you trust it set {setting(trust_remote_code='true')} together with a pinned "
        "`vllm_server_revision`",
    )


def unknown_model(case: Case) -> Words:
    return (
        f"vLLM in {case.context.image_name} does not know the model architecture {case.get('arch')}",
        "Choose a newer image (`vllm_image_tag`), or a model from vLLM's list of supported ones",
    )


def dropped_model(case: Case) -> Words:
    last = case.get("last")
    return (
        f"vLLM supported the model architecture {case.get('arch')} until v{last}, and no longer does",
        f"Set `vllm_image_tag` to a release up to v{last}",
    )


def broken_model(case: Case) -> Words:
    return (
        f"vLLM knows the model architecture {case.get('arch')}, but its code cannot be imported in "
        f"{case.context.image_name}",
        "Look for the import that failed in the lines above this error, and choose an image where it works",
    )


def quantisation(case: Case) -> Words:
    return (
        f"vLLM in {case.context.image_name} cannot run {case.get('method')} quantised weights on this hardware",
        "Choose a version of the model in another format (MI300X and later run FP8), or a newer image",
    )


def other_gpu(case: Case) -> Words:
    return (
        f"{case.context.image_name[0].upper()}{case.context.image_name[1:]} was built for other GPUs than this node's",
        "Choose an image that was built for this GPU's architecture (`rocm_info` shows it as gfx), or build one with "
        "`vllm_image_source: build`",
    )


# Splitting over GPUs ---------------------------------------------------------------------------------------------


def _divisors(number: int, limit: int) -> list[int]:
    return [size for size in range(1, min(number, limit) + 1) if number % size == 0]


def heads(case: Case) -> Words:
    heads, size = int(case.get("heads")), int(case.get("size"))
    fits = _divisors(heads, len(case.context.gpus or ()) or max(64, size))
    return (
        f"{case.context.model_name} has {heads} attention heads, which tensor-parallel-size {size} does not divide",
        f"Set {setting(tensor_parallel_size=max(d for d in fits if d <= size))}, for {heads} can be divided by "
        f"{listed(fits)}",
    )


def dimension(case: Case) -> Words:
    number, by = int(case.get("number")), int(case.get("by"))
    return (
        f"A dimension of {number} of {case.context.model_name} cannot be split into {by} equal parts",
        f"Set tensor-parallel-size in `vllm_server_args` to one of {listed(_divisors(number, max(16, by)))}",
    )


def no_pipeline(case: Case) -> Words:
    return (
        f"{case.context.model_name} cannot be split into pipeline stages",
        f"Set {setting(pipeline_parallel_size=1)}, and spread it by tensor-parallel-size",
    )


def no_ray(case: Case) -> Words:
    return (
        f"vLLM cannot use Ray on {case.get('platform')}",
        f"Set {setting(distributed_executor_backend='mp')}",
    )


def quantised_split(case: Case) -> Words:
    size = case.context.size("tensor-parallel-size")
    return (
        f"The blocks of the quantised weights of {case.context.model_name} cannot be split into {size} equal parts",
        f"Set {setting(tensor_parallel_size=max(1, size // 2))} (now {size}), or for a mixture of experts "
        f"{setting(enable_expert_parallel='true')}",
    )


def uneven_nodes(case: Case) -> Words:
    return (
        f"The sizes do not divide each other: {case.match.group(0)}",
        "Correct nnodes, data-parallel-size and tensor-parallel-size in `vllm_server_args`",
    )


def few_gpus(case: Case) -> Words:
    have, rank = case.get("have"), case.get("rank")
    world = case.context.world * case.context.size("data-parallel-size")
    wants = case.get("wants") or str(max(world, int(rank or 0) + 1))
    if not have:
        return (
            f"The server was to use more GPUs ({wants}) than the container has",
            "Set tensor-parallel-size in `vllm_server_args` to their number, or pass all of them (option `devices`)",
        )
    return (
        f"The server was to use {wants} GPUs, and the container sees {have}",
        f"Set {setting(tensor_parallel_size=have)}, or give the container all the node's GPUs (option `devices`, and "
        "HIP_VISIBLE_DEVICES in `vllm_server_env`)",
    )


def permission(case: Case) -> Words:
    return (
        "The container's process may not open the GPU devices, for it is in none of the groups that own them on "
        "the node",
        "Put the numbers that `stat -c %g /dev/kfd /dev/dri/renderD*` prints on the node into the option `groups` "
        "(vllm_server_groups)",
    )


def no_group(case: Case) -> Words:
    return (
        f"The image has no group {case.get('group')}, and Docker looks for the name there and not on the node",
        "Give the container the number that `getent group` prints on the node; a container that the module makes has "
        "numbers, so deploy again where this one came from elsewhere",
    )


def driver(case: Case) -> Words:
    device = case.get("device") or "/dev/kfd"
    return (
        f"{device} does not exist on the node, so the amdgpu driver is not loaded",
        "Run `sudo modprobe amdgpu` and read `dmesg`, and if there is no such module install the driver with "
        "`ansible-playbook deploy.yml --tags prepare`",
    )


def no_cdi(case: Case) -> Words:
    return (
        f"Docker does not know the device {case.get('device')}, for the AMD container toolkit has not described this "
        "node's GPUs to it",
        "Set the option `devices` to /dev/kfd and /dev/dri, or write the description with `amd-ctk cdi generate`",
    )


def no_gpu(case: Case) -> Words:
    count = len(case.context.gpus or ())
    if count:
        return (
            f"vLLM finds no GPU in the container, though the node has {count}",
            "Pass /dev/kfd and /dev/dri (option `devices`), and use an image built for ROCm such as "
            "vllm/vllm-openai-rocm",
        )
    return (
        "vLLM finds no GPU, nor anything else that it could run on",
        "Check that `rocminfo` shows GPUs on the node, that the container gets /dev/kfd and /dev/dri, and that the "
        f"image is built for ROCm ({variable(VLLM_LOGGING_LEVEL='DEBUG')} makes vLLM say why it refused each "
        "platform)",
    )


# The command, the port, the image --------------------------------------------------------------------------------

#: Flags that people set, for where the log lists none: of the two commands only the old one prints them all.
_FLAGS = """
api-key api-server-count async-scheduling attention-backend block-size chat-template compilation-config config
cpu-offload-gb data-parallel-size disable-log-stats distributed-executor-backend download-dir dtype
enable-auto-tool-choice enable-chunked-prefill enable-expert-parallel enable-lora enable-prefix-caching enforce-eager
generation-config gpu-memory-utilization headless hf-overrides hf-token host kv-cache-dtype kv-cache-memory-bytes
limit-mm-per-prompt load-format lora-modules master-addr master-port max-logprobs max-lora-rank max-model-len
max-num-batched-tokens max-num-seqs model-loader-extra-config nnodes node-rank override-generation-config
pipeline-parallel-size port quantization reasoning-parser revision root-path safetensors-load-strategy seed
served-model-name shutdown-timeout speculative-config tensor-parallel-size tokenizer tokenizer-mode tool-call-parser
trust-remote-code uvicorn-log-level
"""


def _known_flags(lines: Sequence[str]) -> list[str]:
    """Flags of the usage text that argparse printed, else the common ones."""
    found: set[str] = set()
    usage = False
    for line in lines:
        usage = usage or line.startswith("usage: ")
        if ": error: " in line:
            break
        if usage:
            found.update(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", line))
    return sorted(found) if len(found) > 10 else _FLAGS.split()


def unknown_flag(case: Case) -> Words:
    words = [word.split("=", 1)[0] for word in case.get("unknown").split()]
    flags = [word.lstrip("-") for word in words if word.startswith("-")] or words
    known = _known_flags(case.run.lines)
    near = {flag: next(iter(difflib.get_close_matches(flag, known, 1)), "") for flag in flags}
    better = [f"`{flag}` by `{good}`" for flag, good in near.items() if good]
    rest = [f"`{flag}`" for flag, good in near.items() if not good]
    todo = [f"replace {listed(better)}" if better else "", f"remove {listed(rest)}" if rest else ""]
    remedy = f"In `vllm_server_args` {' and '.join(part for part in todo if part)}"
    value = case.context.arg(flags[0])
    if len(flags) == 1 and better and value is not None:
        remedy += f", that is {setting(**{near[flags[0]]: value})}"
    return f"This vLLM does not know {listed([f'`--{flag}`' for flag in flags])}", remedy


def refused_value(case: Case) -> Words:
    flag = case.get("flag").split("/")[-1].lstrip("-").replace("_", "-")
    return (
        f"The value of {flag} is refused: {case.get('why').strip()[:300]}",
        f"Correct {flag} in `vllm_server_args`",
    )


def refused_arguments(case: Case) -> Words:
    return (
        f"vLLM refuses its arguments: {(case.get('why') or case.match.group(0)).strip()[:300]}",
        "Correct `vllm_server_args`",
    )


def no_program(case: Case) -> Words:
    return (
        f"The container was to run `{case.get('program')}`, and {case.context.image_name} has no such program",
        "Set `vllm_server_entrypoint` to the image's own command (`[vllm, serve]` in vllm/vllm-openai-rocm), or use "
        "an image that contains vLLM",
    )


def no_mount(case: Case) -> Words:
    return (
        f"The folder {case.get('path')}, which the container was to see, does not exist on the node",
        "Create it, or correct `hf_cache_path` or `vllm_server_volumes`",
    )


def two_lists(case: Case) -> Words:
    return (
        f"HIP_VISIBLE_DEVICES is {case.get('hip')} and CUDA_VISIBLE_DEVICES is {case.get('cuda')}, which "
        "contradict each other",
        "Set HIP_VISIBLE_DEVICES alone in `vllm_server_env`",
    )


def no_parser(case: Case) -> Words:
    flag = "tool-call-parser" if case.get("what") == "tool call" else "reasoning-parser"
    near = difflib.get_close_matches(case.get("parser"), re.findall(r"[\w.-]+", case.get("choices")), 3, 0.5)
    hint = f" ({listed([f'`{name}`' for name in near])} come near)" if near else ""
    return (
        f"This vLLM has no {case.get('what')} parser `{case.get('parser')}`",
        f"Set {flag} in `vllm_server_args` to one that it has{hint}",
    )


def port(case: Case) -> Words:
    mine = str(case.context.port) if case.context.port else ""
    port = case.get("port") or mine
    if port and mine and port != mine:
        return (
            f"Port {port}, over which the server's own processes meet, is in use by another process",
            f"Stop it (`ss -ltnp 'sport = :{port}'` on the node names it), or set another master-port in "
            "`vllm_server_args`",
        )
    look = f"`ss -ltnp 'sport = :{port}'`" if port else "`ss -ltnp`"
    return (
        f"{f'Port {port}' if port else 'The port'} is in use on the node by another process",
        f"Stop it ({look} and `docker ps` name it; where neither does, `systemctl restart docker` makes an engine "
        "that was killed forget it), or choose another `vllm_server_port`",
    )


def image(case: Case) -> Words:
    image = case.get("image").rstrip(".:,")
    return (
        f"{f'The image {image}' if image else case.context.image_name.capitalize()} is not on the node, and the "
        "registry does not give it",
        f"Check `vllm_image_name`, `vllm_image_tag` and `vllm_image_digest`, and bring it with {STAGE}",
    )


# The node --------------------------------------------------------------------------------------------------------


def shared_memory() -> Words:
    """Explain a lack of shared memory."""
    return (
        "The server's processes ran out of shared memory (/dev/shm, to which Docker gives 64 MB by default)",
        "Set `vllm_server_shm_size: 32g`, or the option `ipc_mode: host`",
    )


def host_memory(process: str = "", *, limit: bool = False) -> Words:
    """Explain a process that was killed for lack of main memory; ``limit`` where it was the container's own limit."""
    why = "the container reached its memory limit" if limit else "the node was out of main memory"
    return (
        f"{f'The process {process}' if process else 'A process of the server'} was killed because {why} (RAM, "
        "not GPU memory)",
        "Stop other programs on the node or raise the container's limit, and leave out cpu-offload-gb and "
        "prefetching in `vllm_server_args` (`dmesg -T | grep -i oom` shows what was killed)",
    )


def collective(case: Case) -> Words:
    what = case.get("what").strip().rstrip(".")
    cause = f"The processes of the GPUs could not join into one group{f' ({what})' if what else ''}"
    look = f"run again with {variable(NCCL_DEBUG='INFO')}, whose first NCCL WARN line names the reason"
    if case.context.size("nnodes") > 1 or case.context.arg("master-addr"):
        head = case.context.arg("master-addr") or "the head node"
        return (
            cause,
            f"Check that every node reaches {head} on the master port and that NCCL_SOCKET_IFNAME and "
            f"GLOO_SOCKET_IFNAME in `vllm_server_env` name the network between them, or {look}",
        )
    return cause, f"Check that the container has `ipc_mode: host` and all of /dev/dri, or {look}"


def disk(case: Case) -> Words:
    place = f"for {case.get('path')}" if case.get("path") else "for the model's cache, Docker or /tmp"
    return (
        f"The node's disk has no space left {place}",
        "Make room (`df -h` and `docker system df` show where), or move `hf_cache_path` to a larger disk",
    )


# Ends ------------------------------------------------------------------------------------------------------------


def gave_up(case: Case) -> Words:
    waited = int(case.get("waited") or 600)
    return (
        f"vLLM's API server waited {waited} s for its engine and gave up, though the engine may only have been slow",
        f"Set {variable(VLLM_ENGINE_READY_TIMEOUT_S=max(3600, 2 * waited))}",
    )


def stopped(*, ready: bool, how: str = "SIGTERM") -> Words:
    """Explain that the server was stopped from outside, ``how`` being the signal."""
    when = "it served" if ready else "it was still starting"
    cause = f"Somebody stopped the server ({how}) while {when}, it did not fail by itself"
    if how == "SIGKILL":
        return cause, (
            "Look who did with `docker events --since 1h`, and with `dmesg -T | grep -i oom` whether the kernel did "
            "for lack of RAM, and start again"
        )
    return (
        cause,
        "Look who did with `docker events --since 1h` (or whether Docker or the node restarted), and start again",
    )


def engine_died(what: str, *, ready: bool) -> Words:
    """Explain that the engine's process ended, ``what`` being its last words if it had any."""
    cause = f"The engine process died while it {'served' if ready else 'started'}"
    cause += f": {what.strip()[:200].rstrip('.')}" if what else ""
    if "out of memory" in what:
        return cause, "Lower gpu-memory-utilization by 0.03 or max-num-seqs in `vllm_server_args`, and deploy again"
    return cause, (
        "Look into `dmesg -T` for GPU faults and killed processes and at the end of the log, and start again if the "
        "restart policy has not"
    )


def last_words(case: Case) -> Words:
    return engine_died(case.get("what"), ready=case.run.ready)
