# SPDX-License-Identifier: Apache-2.0
"""burnin.py against outputs composed after the programs' documentation; none is recorded on hardware."""

import pytest

from ansible.module_utils.vllm_fleet.preflight import burnin

MI300X = "AMD Instinct MI300X"


def table(*rows):
    """all_reduce_perf's output: (size, in-place busbw, wrong values in place)."""
    head = (
        "# nThread 1 nGpus 8 minBytes 8 maxBytes 8589934592 step: 2(factor) warmup iters: 5 iters: 20\n#\n"
        "#                                              out-of-place                       in-place\n"
        "#       size   count   type   redop   root   time   algbw   busbw #wrong   time   algbw   busbw #wrong\n"
        "#        (B)  (elements)                     (us)  (GB/s)  (GB/s)          (us)  (GB/s)  (GB/s)\n"
    )
    lines = [
        f"{size:12} {size // 4:12} float sum -1 44000 195.2 341.6 0 43900 195.7 {busbw} {wrong}"
        for size, busbw, wrong in rows
    ]
    return head + "\n".join(lines) + "\n# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 88.1\n"  # fmt: skip


def gst(*verdicts, word="met"):
    return "".join(
        f"[RESULT] [ 4711.{n:06}] Action name :gpustress-9000-sgemm-true module :gst GPU {10007 + n} {word}: {verdict}\n"
        for n, verdict in enumerate(verdicts)
    )


GB8 = 8 << 30


def a2a(average):
    """The end of what `TransferBench a2a` prints (its source, presets/AllToAll.hpp)."""
    return (
        "RTotal  326.350    325.359\n\n"
        f"Average   bandwidth (GPU Timed): {average:8.3f} GB/s\n"
        f"Aggregate bandwidth (GPU Timed): {56 * average:8.3f} GB/s\nAggregate bandwidth (CPU Timed): 1937.924 GB/s\n"
    )


@pytest.mark.parametrize(
    ("tool", "output", "rc", "name", "level", "got"),
    [
        ("transfer_bench", a2a(46.552), 0, MI300X, "ok", "average 46.6 GB/s"),
        ("transfer_bench", a2a(32.899), 0, MI300X, "refused", "average 32.9 GB/s"),
        ("transfer_bench", a2a(46.552), 0, "AMD Instinct MI355X", "unknown", "average 46.6 GB/s"),
        ("transfer_bench", a2a(46.552), 1, MI300X, "refused", "exit code 1"),
        ("transfer_bench", "", 0, MI300X, "unknown", "no average"),
        ("transfer_bench", a2a(46.552) + "[ERROR] Transfer 0: Unexpected mismatch at index 0 of destination 0", 0, MI300X, "refused", "changed"),
        ("all_reduce_perf", table((8, 0.01, 0), (GB8, 304.0, 0)), 0, MI300X, "ok", "busbw 304.0 GB/s"),
        ("all_reduce_perf", table((8, 0.01, 0), (GB8, 303.9, 0)), 0, MI300X, "refused", "busbw 303.9 GB/s"),
        ("all_reduce_perf", table((GB8, 310.0, "N/A")), 0, MI300X + " VF", "ok", "busbw 310.0 GB/s"),
        ("all_reduce_perf", table((GB8, 349.0, 0)), 0, "AMD Instinct MI355X", "refused", "busbw 349.0 GB/s"),
        ("all_reduce_perf", table((GB8, 350.0, 0)), 0, "AMD Instinct MI350X", "ok", "busbw 350.0 GB/s"),
        ("all_reduce_perf", table((GB8, 350.0, 0)), 0, "AMD Instinct MI325X", "unknown", "busbw 350.0 GB/s"),
        ("all_reduce_perf", table((8, 0.01, 3), (GB8, 310.0, 0)), 0, MI300X, "refused", "3 wrong"),
        ("all_reduce_perf", table((1 << 20, 310.0, 0)), 0, MI300X, "unknown", "largest message 1048576 B"),
        ("all_reduce_perf", "", 0, MI300X, "unknown", "no table in its output"),
        ("all_reduce_perf", table((GB8, 310.0, 0)), 3, MI300X, "refused", "exit code 3 (busbw 310.0 GB/s)"),
        ("all_reduce_perf", "Test NCCL failure common.cpp:1279 'unhandled cuda error'\n", 1, MI300X, "refused", "exit code 1 (no table in its output)"),
        ("gst", gst(*["TRUE"] * 8), 0, MI300X, "ok", "8 TRUE"),
        ("gst", gst(*["TRUE"] * 7, "FALSE"), 0, MI300X, "refused", "1 of 8 FALSE"),
        ("gst", gst(*["TRUE"] * 7), 0, MI300X, "refused", "TRUE of 7 only"),
        ("gst", "[ERROR] no devices match criteria\n", 0, MI300X, "unknown", "no verdict in its output"),
        ("gst", gst(*["TRUE"] * 8, word="pass"), 0, MI300X, "unknown", "no verdict in its output"),
        ("iet", gst(*["TRUE"] * 8, word="pass"), 0, MI300X, "ok", "8 TRUE"),
        ("iet", gst("FALSE", word="pass"), 255, MI300X, "refused", "GPU 10007 pass: FALSE"),
        ("iet", gst(*["TRUE"] * 8, word="pass"), -1, MI300X, "refused", "exit code -1 (8 TRUE)"),
    ],
)  # fmt: skip
def test_verdict(tool, output, rc, name, level, got):
    found = burnin.judge(tool, output, rc, name, 8)
    assert (found.level, got in found.got) == (level, True), found
    assert bool(found.remedy) == (level != "ok")


def test_own_figure_replaces_that_of_amd():
    assert burnin.judge("all_reduce_perf", table((GB8, 300.0, 0)), 0, MI300X, 8, min_busbw=290.0).level == "ok"
    assert burnin.judge("all_reduce_perf", table((GB8, 300.0, 0)), 0, "other", 8, min_busbw=310.0).level == "refused"


def test_a_program_that_is_not_there_is_skipped_with_a_word():
    for tool in burnin.TOOLS:
        found = burnin.not_installed(tool)
        assert (found.level, found.got) == ("unknown", "skipped: not installed")


def test_unknown_tool():
    with pytest.raises(ValueError, match="one of gst, iet, transfer_bench, all_reduce_perf is expected"):
        burnin.judge("agfhc", "", 0, MI300X, 8)


def gpus(*names):
    """GPUs as rocm_info lists them, one a name."""
    return [{"name": name, "pci": f"0000:{n:02x}:00.0"} for n, name in enumerate(names)]


@pytest.mark.parametrize(
    ("found", "name", "count"),
    [
        ([], "", 0),
        (gpus(MI300X, MI300X), MI300X, 2),
        (gpus(None, MI300X), MI300X, 2),
        (gpus("") * 3, "", 1),  # partitions of one GPU
    ],
)
def test_the_gpus_of_a_node(found, name, count):
    assert (burnin.gpu_name(found), burnin.gpu_count(found)) == (name, count)


BUSY = [
    {"pid": 7, "container_name": "vllm", "command": "python3"},
    {"pid": 8, "container_name": None, "command": "bash"},
    {"pid": 9, "container_name": "", "command": ""},
]


@pytest.mark.parametrize(
    ("found", "processes", "says"),
    [
        (gpus(MI300X), [], ""),
        ([], BUSY, "n1: a burn-in needs idle GPUs, and there are none (see rocm_info). Nothing was started."),
        (
            gpus(MI300X),
            BUSY,
            "n1: a burn-in needs idle GPUs, and they are used by pid 7 (vllm), pid 8 (bash), pid 9 (unknown); stop that "
            "first. Nothing was started.",
        ),
    ],
)
def test_nothing_is_started_on_a_node_without_idle_gpus(found, processes, says):
    assert burnin.refusal({"gpus": found, "processes": processes}, "n1") == says


PLACES = {"rvs_prefixes": ["/a", "/b"], "transfer_bench": ["/a/TB"], "all_reduce_perf": ["/a/ar", "/b/ar"]}
SHARE = "/share/rocm-validation-suite"


def test_what_is_looked_for():
    rvs = ["/a/bin/rvs", f"/a{SHARE}", "/b/bin/rvs", f"/b{SHARE}"]
    assert burnin.candidates(PLACES) == [*rvs, "/a/TB", "/a/ar", "/b/ar"]


@pytest.mark.parametrize(
    ("present", "name", "commands"),
    [
        ([], MI300X, {}),
        # A program without its configurations, or these alone, is no RVS.
        (["/a/bin/rvs", f"/b{SHARE}"], MI300X, {}),
        (
            ["/a/bin/rvs", "/b/bin/rvs", f"/b{SHARE}"],
            MI300X,
            {tool: ["/b/bin/rvs", "-c", f"/b{SHARE}/conf/MI300X/{tool}_single.conf"] for tool in ("gst", "iet")},
        ),
        (
            ["/a/bin/rvs", f"/a{SHARE}"],
            "",
            {tool: ["/a/bin/rvs", "-c", f"/a{SHARE}/conf/unknown/{tool}_single.conf"] for tool in ("gst", "iet")},
        ),
        (["/a/TB"], MI300X, {"transfer_bench": ["/a/TB", "a2a"]}),
        (["/b/ar"], MI300X, {"all_reduce_perf": ["/b/ar", "-b", "8", "-e", "8G", "-f", "2", "-g", "2"]}),
    ],
)
def test_the_commands_of_what_is_installed(present, name, commands):
    expected = {tool: commands.get(tool, []) for tool in burnin.TOOLS}
    assert burnin.commands(PLACES, present, gpus(name, name)) == expected
