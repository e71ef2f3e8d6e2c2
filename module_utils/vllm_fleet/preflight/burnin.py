# SPDX-License-Identifier: Apache-2.0
"""Which burn-in programs a node can run, and what they print, against AMD's figures. Pure: values in, findings out.

Figures: AMD's system acceptance documents for Instinct nodes. No output was recorded on hardware by this project; what
a program prints in another form than expected is ``unknown``, never ``ok``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..common.finding import Finding

#: In-place bus bandwidth in GB/s that `all_reduce_perf -b 8 -e 8G -f 2 -g 8` has to reach, by part of the product name.
MIN_BUSBW: Mapping[str, float] = {"MI300X": 304.0, "MI350X": 350.0, "MI355X": 350.0}

#: Average bandwidth in GB/s between the pairs of GPUs that `TransferBench a2a` has to reach. Source: AMD's acceptance
#: script for MI300X nodes (AMD-AGI/Primus-SaFE, preflight/mi300x/transfer_bench_a2a.sh); none is published for others.
MIN_A2A: Mapping[str, float] = {"MI300X": 32.9}

#: AMD's figure is that of the largest message; small ones measure latency.
LARGEST_MESSAGE = 8 << 30

#: What RVS's modules print for every GPU: the GPU stress test and the input EDPp test.
RVS_VERDICTS: Mapping[str, str] = {"gst": "met", "iet": "pass"}

TOOLS = ("gst", "iet", "transfer_bench", "all_reduce_perf")

_PACKAGES: Mapping[str, str] = {"all_reduce_perf": "rccl-tests", "transfer_bench": "TransferBench"}

_ROW_FIELDS = 13

#: Below a prefix of RVS: its program, and the folder with its configurations. It needs both.
_RVS = "/bin/rvs"
_RVS_SHARE = "/share/rocm-validation-suite"


def gpu_name(gpus: Sequence[Mapping[str, Any]]) -> str:
    """Return the product name of a node's GPUs, as rocm_info lists them; empty where none has a name."""
    return next((str(gpu["name"]) for gpu in gpus if gpu["name"]), "")


def gpu_count(gpus: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of a node's GPUs; partitions of one GPU count once."""
    return len({gpu["pci"] for gpu in gpus})


def refusal(node: Mapping[str, Any], host: str) -> str:
    """Return why nothing may be started on a node, as rocm_info found it; empty where it has GPUs and all are idle."""
    if not node["gpus"]:
        why = "there are none (see rocm_info)"
    elif node["processes"]:
        users = ", ".join(
            f"pid {one['pid']} ({one['container_name'] or one['command'] or 'unknown'})" for one in node["processes"]
        )
        why = f"they are used by {users}; stop that first"
    else:
        return ""
    return f"{host}: a burn-in needs idle GPUs, and {why}. Nothing was started."


def candidates(places: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the files that have to be looked for: of ``rvs_prefixes`` what RVS is made of, and the other programs."""
    rvs_files = [prefix + part for prefix in places["rvs_prefixes"] for part in (_RVS, _RVS_SHARE)]
    return [*rvs_files, *places["transfer_bench"], *places["all_reduce_perf"]]


def commands(
    places: Mapping[str, Sequence[str]], present: Sequence[str], gpus: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return the command of each tool, empty where it is not installed; the first place that has a program counts.

    ``present``: those of candidates() that the node has; ``gpus`` as rocm_info lists them.
    """
    rvs_at = next((p for p in places["rvs_prefixes"] if {p + _RVS, p + _RVS_SHARE} <= set(present)), "")
    # RVS has one folder of configurations per product: MI300X of "AMD Instinct MI300X VF".
    product = re.search(r"MI\d+X", gpu_name(gpus))
    conf = f"{rvs_at}{_RVS_SHARE}/conf/{product[0] if product else 'unknown'}"
    bench, reduce = (
        next((path for path in places[tool] if path in present), "") for tool in ("transfer_bench", "all_reduce_perf")
    )
    return {
        **{tool: [rvs_at + _RVS, "-c", f"{conf}/{tool}_single.conf"] if rvs_at else [] for tool in RVS_VERDICTS},
        "transfer_bench": [bench, "a2a"] if bench else [],
        "all_reduce_perf": [reduce, "-b", "8", "-e", "8G", "-f", "2", "-g", str(gpu_count(gpus))] if reduce else [],
    }


def judge(
    tool: str, output: str, rc: int, gpu_name: str, gpus: int, *, min_busbw: float = 0.0, min_a2a: float = 0.0
) -> Finding:
    """Return the findings on what a program printed on a node with ``gpus`` GPUs.

    ``min_busbw`` and ``min_a2a`` (GB/s) replace AMD's figures unless 0.

    Raises ValueError for a ``tool`` that is none of TOOLS.
    """
    if tool == "all_reduce_perf":
        found = all_reduce(output, gpu_name, min_busbw)
    elif tool == "transfer_bench":
        found = transfer_bench(output, gpu_name, min_a2a)
    elif tool in RVS_VERDICTS:
        found = rvs(tool, output, gpus)
    else:
        raise ValueError(f"tool is {tool!r}; one of {', '.join(TOOLS)} is expected")
    if rc != 0 and found.level != "refused":
        remedy = "see its log; without a good end its figures do not count"
        return Finding("refused", tool, "exit code 0", f"exit code {rc} ({found.got})", remedy)
    return found


def not_installed(tool: str) -> Finding:
    """The finding for a program that the node does not have."""
    package = _PACKAGES.get(tool, "rocm-validation-suite")
    return Finding("unknown", tool, "a result", "skipped: not installed", f"install {package}, or give its path")


def rvs(tool: str, output: str, gpus: int) -> Finding:
    """Judge RVS: every GPU has its verdict and none is FALSE."""
    word = RVS_VERDICTS[tool]
    wanted = f"{word}: TRUE of {gpus} GPUs"
    verdicts = re.findall(rf"\b{word}:\s*(TRUE|FALSE)\b", output, re.IGNORECASE)
    bad = [line.strip() for line in output.splitlines() if re.search(rf"\b{word}:\s*FALSE\b", line, re.IGNORECASE)]
    if bad:
        got = f"{len(bad)} of {len(verdicts)} FALSE: {bad[0][-120:]}"
        return Finding(
            "refused", tool, wanted, got, "check power and cooling of that GPU; if it stays, have it replaced"
        )
    if not verdicts:
        return Finding("unknown", tool, wanted, "no verdict in its output", "see its log")
    if len(verdicts) < gpus:
        got = f"TRUE of {len(verdicts)} only"
        return Finding("refused", tool, wanted, got, "see its log for the GPUs that gave no verdict")
    return Finding("ok", tool, wanted, f"{len(verdicts)} TRUE")


def transfer_bench(output: str, gpu_name: str, min_a2a: float = 0.0) -> Finding:
    """Judge `TransferBench a2a` by its line ``Average   bandwidth (GPU Timed):   46.552 GB/s``, and by mismatches."""
    tool = "transfer_bench"
    least = min_a2a or next((figure for name, figure in MIN_A2A.items() if name in gpu_name), 0.0)
    wanted = f"average {least:.1f} GB/s or more" if least else "a known figure"
    if re.search(r"\[ERROR\].*mismatch", output, re.IGNORECASE):
        remedy = "look for iommu=pt on the kernel command line; if it is there, do not compute on this node"
        return Finding("refused", tool, "no mismatch", "data arrived changed", remedy)
    match = re.search(r"^Average\s+bandwidth[^:\n]*:\s*([0-9.]+)\s*GB/s", output, re.MULTILINE)
    if not match:
        return Finding("unknown", tool, wanted, "no average in its output", "see its log")
    bandwidth = float(match[1])
    got = f"average {bandwidth:.1f} GB/s"
    if not least:
        return Finding("unknown", tool, wanted, got, f"AMD names none for {gpu_name or 'this GPU'}; set burnin_min_a2a")
    if bandwidth < least:
        return Finding("refused", tool, wanted, got, "check the links between the GPUs (amd-smi topology, xgmi)")
    return Finding("ok", tool, wanted, got)


def in_place_busbw(output: str) -> dict[int, tuple[float, int]]:
    """Return {message size in bytes: (in-place bus bandwidth in GB/s, wrong values)} of all_reduce_perf's table.

    A row is size, count, type, redop, root, then time, algbw, busbw, #wrong out of place and the same in place.
    A run without verification has N/A for #wrong, which counts as none.
    """
    found = {}
    for line in output.splitlines():
        fields = line.split()
        if len(fields) != _ROW_FIELDS or not fields[0].isdigit():
            continue
        try:
            bandwidth = float(fields[11])
        except ValueError:
            continue
        wrong = sum(int(field) for field in (fields[8], fields[12]) if field.isdigit())
        found[int(fields[0])] = (bandwidth, wrong)
    return found


def all_reduce(output: str, gpu_name: str, min_busbw: float = 0.0) -> Finding:
    """Judge all_reduce_perf by the in-place bus bandwidth of its largest message, and by wrong values of any."""
    tool = "all_reduce_perf"
    least = min_busbw or next((figure for name, figure in MIN_BUSBW.items() if name in gpu_name), 0.0)
    wanted = f"busbw {least:.0f} GB/s or more" if least else "a known figure"
    rows = in_place_busbw(output)
    wrong = sum(count for _, count in rows.values())
    if wrong:
        return Finding(
            "refused", tool, "no wrong values", f"{wrong} wrong", "do not compute on this node; tell its provider"
        )
    if not rows or max(rows) < LARGEST_MESSAGE:
        got = f"largest message {max(rows)} B" if rows else "no table in its output"
        return Finding("unknown", tool, wanted, got, "the figure is that of 8 GiB messages: see its log")
    bandwidth = rows[max(rows)][0]
    got = f"busbw {bandwidth:.1f} GB/s"
    if not least:
        return Finding(
            "unknown", tool, wanted, got, f"AMD names none for {gpu_name or 'this GPU'}; set burnin_min_busbw"
        )
    if bandwidth < least:
        return Finding("refused", tool, wanted, got, "check the links between the GPUs (amd-smi topology, xgmi)")
    return Finding("ok", tool, wanted, got)
