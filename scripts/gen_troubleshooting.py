#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write docs/troubleshooting.md: one entry per failure class, with what the diagnosis really says of an example.

The examples are tests/fixtures/failures/cases.yml, so that a changed remedy changes the page. ``--check`` writes
nothing and fails where the page is not what would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.diagnosis import diagnose  # noqa: E402 - found through the path that is set above

PAGE = ROOT / "docs" / "troubleshooting.md"
FIXTURES = ROOT / "tests" / "fixtures"

HEAD = """\
# Troubleshooting

<!-- Written by scripts/gen_troubleshooting.py: change that, or the diagnosis. -->

A start that fails ends with one sentence: the container, the node, a class, why, and what to do. The task's result has
the same in parts, under `failure`: `class`, `evidence` (the lines of the log that prove it), `remedy` and `exit_code`.
The log is kept on the node; `log_file` of the result says where.

The reason is looked for in the earliest traceback that names one. A worker that fails makes its engine fail, and the
engine its API server, so the last lines of a log (`Engine core initialization failed. See root cause above.`) never say
why. A traceback counts more than a fault of a GPU, a fault more than a line of the log, and an error that the start
went on after counts for nothing. What no row of the table knows is classed by its kind: the exception's type, the
library in whose code it was raised, and what the start was doing.

`scripts/diagnose LOG` says the same of any vLLM log, without Ansible and without a node: `docker logs vllm 2>&1 |
scripts/diagnose -`. `--json` prints the parts. It ends with 0 where the failure has a name, with 1 where it has none.
Where the page says `vllm_server_args: {name: value}`, the command line says `--name value`; `vllm_server_env` are the
container's environment variables.

Options that are named without `vllm_server_` are those of the module `vllm_server`.

A server that runs and does not answer is no failed start. [watchdog.md](watchdog.md) says what finds it between two
runs, [rollout.md](rollout.md#a-server-that-gives-no-answer) what a run does with it.
"""

#: Why it happens, and what to know before doing what the message says; by class.
NOTES: Mapping[str, tuple[str, str]] = {
    "gpu_memory_taken": (
        "vLLM takes a share of each GPU's whole memory (`gpu-memory-utilization`, 0.92 unless set) and refuses to "
        "start where less than that is free. The rest is held by another program, or by a process of an earlier "
        "server that did not end.",
        "The message names the holders where the node can tell. A process that is gone and still holds memory is freed "
        "by a restart of the node at the latest. A lower share leaves less for the KV cache, not for the weights.",
    ),
    "model_too_large": (
        "The weights, divided by tensor-parallel-size, are more than a GPU's memory; or they fit, and what is computed "
        "beside them while the server warms up does not.",
        "More GPUs per replica help against the first, fewer tokens and sequences at once against the second.",
    ),
    "kv_cache_too_small": (
        "What `gpu-memory-utilization` grants, less the weights and the working memory, must hold at least one "
        "request of the full context.",
        "Models with a very long context rarely need it: `max-model-len` is the first thing to lower.",
    ),
    "context_too_long": (
        "`max-model-len` is beyond what the model's config.json says it was trained for.",
        "vLLM can be forced (VLLM_ALLOW_LONG_MAX_MODEL_LEN), and answers nonsense beyond the limit.",
    ),
    "model_not_found": (
        "The name is misspelt, the model is private, the revision does not exist, or a path was given that the "
        "container does not see.",
        "The Hub answers alike for a model that does not exist and for one that the token may not see. A path is "
        "looked up inside the container.",
    ),
    "gated_model": (
        "The owner wants to know who downloads. The Hub gives the files only to accounts that have accepted the "
        "licence, some only after a person has approved it.",
        "Acceptance is the account's, the token only shows whose it is: a token of another account does not help.",
    ),
    "cache_miss_offline": (
        "The server starts with downloads switched off, or on a node that reaches no Hub, and finds nothing in the "
        "cache. Mostly the cache is another folder, or holds another revision.",
        "Weights are staged before any server is stopped, and every node gets the same pinned revision.",
    ),
    "cache_incomplete": (
        "A download or copy was interrupted. Files that are missing as a whole are noticed by vLLM late, or as weights "
        "that were never initialised.",
        "Staging compares the cache with the list of files of the revision and brings what is missing.",
    ),
    "weights_corrupt": (
        "A file was cut short while copying, or something else was saved in its place.",
        "Only a comparison of checksums finds the file; sizes may be right.",
    ),
    "remote_code_refused": (
        "The repository holds the model's Python code, and loading the model would run it on the node.",
        "A pinned revision keeps the code that was read from being exchanged later.",
    ),
    "unsupported_architecture": (
        "The model is newer than the image's vLLM, its weights are in a format that this hardware cannot compute, "
        "or the image was built for other GPUs.",
        "`vllm_image_tag` chooses the release. gfx942 is MI300X and MI325X, gfx950 MI350X and MI355X.",
    ),
    "bad_parallelism": (
        "Tensor parallelism gives each GPU the same number of attention heads, and the blocks of quantised weights "
        "must come out whole as well.",
        "Sizes are powers of two for nearly all models.",
    ),
    "not_enough_gpus": (
        "tensor-parallel-size x pipeline-parallel-size x data-parallel-size is more than the GPUs that the "
        "container sees: not all were passed, HIP_VISIBLE_DEVICES hides some, or one has fallen off the bus.",
        "`rocm_info` counts the node's GPUs, partitions each as one.",
    ),
    "no_gpu": (
        "The devices were not passed, the image is a CUDA build, or the node has no working GPU.",
        "Where the node itself sees its GPUs, it is the container's options or the image.",
    ),
    "gpu_permission": (
        "The device files belong to the groups `render` and `video`, whose numbers differ from system to system.",
        "The role passes the numbers of the node by itself; this comes of setting `groups` by hand.",
    ),
    "driver_missing": (
        "The module amdgpu is not loaded: not installed, blacklisted by the vendor's image, built for another "
        "kernel, or waiting for a restart of the node.",
        "`modprobe amdgpu` says why it cannot be loaded.",
    ),
    "bad_argument": (
        "Flags come and go with vLLM's releases; exit code 2 is the argument parser's. Or the container ran something "
        "else than vLLM, because the image's entrypoint is a shell.",
        "Write flags in `vllm_server_args` without their dashes.",
    ),
    "port_taken": (
        "Two servers cannot listen on the same port. vLLM may notice only after the whole load, if the other was still "
        "loading too.",
        "An earlier container under another name is the usual holder.",
    ),
    "image_missing": (
        "The name, tag or digest is wrong, or the registry wants a login.",
        "Staging brings the image before any server is stopped.",
    ),
    "shared_memory": (
        "The processes of a server hand each other tensors through /dev/shm. A process that touches more of it than "
        "there is gets SIGBUS.",
        "The role shares the host's (`ipc_mode: host`); this comes of changing that.",
    ),
    "collective_init": (
        "RCCL (which reports as NCCL) or PyTorch's rendezvous failed: a network interface that does not lead to the "
        "other nodes, a closed port, a missing device, or a rank that died first.",
        "Where one rank fails of another cause, that cause is given instead.",
    ),
    "host_memory": (
        "The kernel killed a process for lack of RAM. Loading maps all the weights, and all ranks do so at once.",
        "Docker's OOMKilled means the container's own limit; exit code -9 of a worker means either.",
    ),
    "disk_full": (
        "The model's cache, Docker's storage and /tmp may be different disks.",
        "DeepSeek-V3.1 takes about 700 GB. An interrupted download leaves `*.incomplete` files behind.",
    ),
    "engine_died": (
        "The engine is a process of its own: a GPU fault, a crash in native code or the kernel can end it. The API "
        "server then answers 503 for a few seconds and ends with exit code 0.",
        "Exit code 0 is why the restart policy is `unless-stopped`: `on-failure` would not bring it back.",
    ),
    "stalled": (
        "Neither the log nor the cache nor the processor's time moved for `vllm_server_stall_timeout` seconds. A "
        "slow start that moves is never called stalled.",
        "Compiling kernels for a new GPU or model can be silent for minutes; a lock that was left behind is "
        "silent forever.",
    ),
    "ready_timeout": (
        "The start was moving, and not done after `vllm_server_ready_timeout` seconds; or vLLM itself lost patience "
        "(VLLM_ENGINE_READY_TIMEOUT_S, 600 s unless set).",
        "Loading hundreds of GB from a cold disk takes an hour; a second start reads them from memory.",
    ),
    "wrong_model_served": (
        "The port is answered by another server, or the server goes by another name.",
        "Clients must ask for a name that `/v1/models` lists.",
    ),
    "stopped_by_signal": (
        "A `docker stop`, a restart of Docker or of the node, or another run of the playbook ended it.",
        "Exit codes are 143 for SIGTERM, 137 for SIGKILL, and 0 where the server had time to end by itself.",
    ),
    "kernel_unsupported": (
        "The model's kernels were written for some GPUs, shapes and number formats, and this is none of them. AITER is "
        "ROCm's library of such kernels; vLLM has slower ones of its own for nearly all of them.",
        "Switch off the one kernel that the frames name, before all of AITER. A newer image often has the kernel.",
    ),
    "broken_image": (
        "A package or a symbol is missing: the image was built from parts of different times, or it lacks what this "
        "model needs.",
        "A mended image is better than a package that is installed at each start, and does not need the network.",
    ),
    "weights_mismatch": (
        "The checkpoint has other tensors than the model's code in vLLM: it was quantised by another program, renamed, "
        "or is newer than the image.",
        "The files are whole: fetching them again changes nothing.",
    ),
    "compile_cache": (
        "vLLM, Inductor and Triton keep what they compiled in the engine's cache folder. A start that was killed while "
        "it wrote, two starts at once, or another version can leave what the next start cannot use.",
        "Removing it costs one slow start. The weights are in another folder.",
    ),
    "file_permission": (
        "The container runs as a user that does not own the folders that are mounted into it.",
        "The vLLM images run as root unless `user` says otherwise.",
    ),
    "download_failed": (
        "The Hub or the way to it gave up in the middle of a file: limits of the rate, a proxy, a full buffer.",
        "Staging goes on where it stopped, and a server that starts offline cannot fail this way.",
    ),
    "host_limits": (
        "vLLM starts hundreds of threads. A limit of processes, an old seccomp profile or a small `nofile` refuses "
        "them.",
        "`docker inspect` shows the container's limits, `ulimit -a` in it those of its processes.",
    ),
    "unknown": (
        "No row of the table fits.",
        "The earliest error of the log is given all the same. Please report it with its log, so that it becomes a row.",
    ),
}


def cases() -> list[dict[str, Any]]:
    """Return the table of examples."""
    found: list[dict[str, Any]] = yaml.safe_load((FIXTURES / "failures" / "cases.yml").read_text())
    return found


def log_of(case: Mapping[str, Any]) -> str:
    """Return the log that a case names; ``recorded/`` are those of a real server."""
    name = str(case["log"])
    path = name.replace("recorded/", "vllm-0.32.0-cpu/") if name.startswith("recorded/") else f"failures/{name}"
    return (FIXTURES / path).read_bytes().decode() if name else ""


def context_of(case: Mapping[str, Any]) -> diagnose.Context:
    """Return what is known in a case; sizes are MiB there."""
    given = dict(case.get("context", {}))
    if "gpus" in given:
        given["gpus"] = [_gpu(*row) for row in given["gpus"]]
    return diagnose.Context(**{"host": "node3", "port": 8000, "model": "deepseek-ai/DeepSeek-V3.1", **given})


def _gpu(number: int, total: int, free: int, holders: Sequence[Sequence[Any]] = ()) -> diagnose.Gpu:
    held = [diagnose.Holder(pid, command, container, size << 20) for pid, command, container, size in holders]
    return diagnose.Gpu(number, total << 20, free << 20, held)


def failure_of(case: Mapping[str, Any]) -> tuple[diagnose.Failure, diagnose.Context]:
    """Diagnose a case."""
    known = context_of(case)
    return diagnose.diagnose(log_of(case), diagnose.ExitFacts(**case["exit"]), known), known


def render() -> str:
    """Return the whole page."""
    table = cases()
    parts = [HEAD, "| class | what it says |\n|---|---|"]
    parts[-1] += "".join(f"\n| [`{row.class_}`](#{row.class_}) | {row.meaning} |" for row in diagnose.ROWS)
    parts += [_entry(row, [case for case in table if case["class"] == row.class_]) for row in diagnose.ROWS]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _entry(row: diagnose.Row, table: Sequence[Mapping[str, Any]]) -> str:
    example = next(case for case in table if case.get("example"))
    failure, known = failure_of(example)
    why, what = NOTES[row.class_]
    lines = [f"## {row.class_}", row.meaning]
    if failure.evidence:
        lines += ["**Seen** (" + example["name"] + "):", "```text\n" + "\n".join(failure.evidence) + "\n```"]
    lines += [f"> {diagnose.message(failure, known)}", f"**Why.** {why}", f"**What to do.** {failure.remedy}. {what}"]
    others = [case for case in table if case is not example]
    said: dict[str, str] = {}
    for case in others:
        remedy = failure_of(case)[0].remedy
        if remedy != failure.remedy:
            said.setdefault(remedy, case["name"])
    if said:
        lines += ["**Also:**", "\n".join(f"- *{name}*: {remedy}." for remedy, name in said.items())]
    return "\n\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or check it."""
    page = render()
    if "--check" not in arguments:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page)
        return 0
    if PAGE.exists() and PAGE.read_text() == page:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what the table says: run scripts/gen_troubleshooting.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
