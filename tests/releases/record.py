#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records how a release of vLLM starts and how it fails, as fixtures of the tests.

    record.py lock 0.9.2 --day 2025-07-10 --torch 2.6.0 --also triton==3.2.0 intel-extension-for-pytorch==2.6.0
    record.py tree 0.9.2             install it
    record.py logs 0.9.2 [CASE...]   one good start and six failures, into tests/fixtures/vllm-0.9.2-cpu
    record.py flags 0.9.2            the flags that its help names, beside them
    record.py remove 0.9.2           tree and image

Needs Docker, the base image and the model of the local inventory (tests/prepare.yml and scripts/seed_smollm2/seed.py
make them), uv from PyPI, and Debian's Python of a version that the release has wheels for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml
from release_tree import CACHE, RELEASES, ROOT, TREE, lock_of, make_image, make_lock, make_tree, remove, run

sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "module_utils")]

from tiny_model import make_model  # noqa: E402
from vllm_fleet.vllm import cli, releases  # noqa: E402 - this program runs without Ansible

FIXTURES = ROOT / "tests/fixtures"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: As models/smollm2-135m-instruct.yml has it for a CPU.
ARGS = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
#: Seconds until a server must be ready, or gone.
DEADLINE = 1200.0


@dataclass(frozen=True)
class Case:
    """One recording: its arguments, what runs before vLLM, options of `docker run`, what happens once it is ready."""

    args: list[str]
    before: str = ""
    env: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    then: Callable[[str, str], None] | None = None


def kill_worker(container: str, log: str) -> None:
    """Kill the last worker that named itself with its pid; some releases put the engine's name before it."""
    found = re.findall(r"\(((?:Vllm)?Worker[^()]*?) pid=(\d+)\)", re.sub(r"\x1b\[[0-9;]*m", "", log))
    if not found:
        raise SystemExit(f"{container}: no worker of this release says its pid")
    name, pid = found[-1]
    print(f"killed: {name}, pid {pid}")
    run(["docker", "exec", container, "sh", "-c", f"kill -9 {pid}"])


def ask(address: str, model: str) -> None:
    """Send a request, for an engine that looks after its workers only when it needs them; its answer does not count."""
    body = json.dumps({"model": model, "prompt": "One, two, three", "max_tokens": 4}).encode()
    asked = urllib.request.Request(f"http://{address}:8000/v1/completions", body, {"Content-Type": "application/json"})
    with contextlib.suppress(OSError):
        urllib.request.urlopen(asked, timeout=30).close()


CASES = {
    "ready": Case([MODEL, *ARGS]),
    "unknown_flag": Case([MODEL, *ARGS, "--gpu-mem-utilisation", "0.5"]),
    "no_such_model": Case(["/models/none", *ARGS]),
    "offline_miss": Case(["HuggingFaceTB/SmolLM2-360M-Instruct", *ARGS], env={"HF_HUB_OFFLINE": "1"}),
    "context_too_long": Case([MODEL, "--dtype", "float32", "--max-model-len", "100000", "--enforce-eager"]),
    "port_taken": Case([MODEL, *ARGS], before="python3 -m http.server 8000 >/dev/null 2>&1 &"),
    "worker_killed": Case(
        ["/models/tiny", *ARGS, "--tensor-parallel-size", "2", "--load-format", "dummy"],
        # Docker's profile forbids migrate_pages, and 0.8.5 ends then where it binds workers to cores.
        options=("--security-opt", "seccomp=unconfined"),
        then=kill_worker,
    ),
}


def state(container: str) -> tuple[bool, int, str]:
    """Whether it runs, its exit code, its address."""
    found = json.loads(run(["docker", "inspect", container]))[0]
    return found["State"]["Running"], found["State"]["ExitCode"], found["NetworkSettings"]["IPAddress"]


def health(address: str) -> int:
    """Return the HTTP status, 0 without an answer."""
    try:
        with urllib.request.urlopen(f"http://{address}:8000/health", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until(container: str, done: Callable[[str], bool], seconds: float = DEADLINE) -> bool:
    """Wait until something is so of its address or it has ended; gives whether it is so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running, _, address = state(container)
        if not running:
            return False
        if done(address):
            return True
        time.sleep(0.5)
    return False


def cleaned(log: str) -> str:
    """Take this machine out of a log: addresses of the bridge, colours stay as they are."""
    return re.sub(r"\b172\.\d+\.\d+\.\d+\b", "192.0.2.2", log)


def record(version: str, name: str, case: Case) -> dict[str, object]:
    """Run one case, write its log, and return how it ended."""
    container = f"record-{version}-{name}".replace("_", "-")
    models = RELEASES / "models"
    models.mkdir(exist_ok=True)
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", **case.env}
    if tuple(map(int, version.split(".")[:3])) < (0, 11, 1):  # reads `nobind` as a list of cores
        env["VLLM_CPU_OMP_THREADS_BIND"] = "0|1" if name == "worker_killed" else "all"
    command = ["docker", "run", "--detach", "--name", container, "--hostname", "node1", "--shm-size", "2g"]
    command += case.options
    command += [word for item in env.items() for word in ("--env", "=".join(item))]
    mounts = {RELEASES / "trees" / version: TREE, CACHE / "seed": "/root/.cache/huggingface", models: "/models"}
    command += [word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}")]
    serve = ["-c", f'{case.before} exec vllm serve "$@"', "vllm", *case.args]
    run(["docker", "rm", "--force", "--volumes", container])
    begun = time.monotonic()
    run([*command, "--entrypoint", "sh", make_image(version), *serve])
    try:
        ready = (
            until(container, lambda address: health(address) == 200)
            if not case.before
            else until(container, lambda _: False)
        )
        seconds = time.monotonic() - begun
        if ready and case.then is not None:
            case.then(container, logs(container))
            until(container, lambda _: False, 30)
            if state(container)[0]:
                ask(state(container)[2], case.args[0])
                until(container, lambda _: False, 60)
        running, code, address = state(container)
        ended: dict[str, object] = {"ready": ready, "seconds": round(seconds)}
        ended |= {"exit_code": None, "health": health(address)} if running else {"exit_code": code}
        (FIXTURES / f"vllm-{version}-cpu" / f"{name}.log").write_text(cleaned(logs(container)))
        return ended
    finally:
        run(["docker", "rm", "--force", "--volumes", container])


def logs(container: str) -> str:
    """Both streams in the order of arrival."""
    return run(["sh", "-c", 'exec docker logs "$1" 2>&1', "sh", container])


def record_flags(version: str) -> None:
    """Write the names of all flags in the release's help, one a line."""
    command = ["docker", "run", "--rm", "--network", "none", "--volume", f"{RELEASES / 'trees' / version}:{TREE}"]
    words = "--help" if releases.older(version, releases.HELP_ALL_SINCE) else "--help=all"
    text = run([*command, make_image(version), words])
    folder = FIXTURES / f"vllm-{version}-cpu"
    folder.mkdir(exist_ok=True)
    (folder / "flags.txt").write_text("".join(f"{flag}\n" for flag in sorted(cli.read_help(text).flags)))


def write_readme(version: str) -> None:
    """Say beside the logs how they came about."""
    day = time.strftime("%Y-%m-%d")
    (FIXTURES / f"vllm-{version}-cpu/README.md").write_text(
        f"# Recorded output of a real vLLM {version} (CPU build from PyPI), {day}\n\n"
        f"By `tests/releases/record.py logs {version}`, in a container with the packages of the release's lock; see\n"
        "docs/testing.md. `.log` holds stdout and stderr together, in order of arrival; `cases.yml` says how each ended.\n"
        "Addresses were rewritten to neutral ones; nothing else was changed.\n"
    )


def record_all(version: str, names: list[str]) -> None:
    """Record the named cases, or all, beside those that are there."""
    folder = FIXTURES / f"vllm-{version}-cpu"
    folder.mkdir(exist_ok=True)
    if not names or "worker_killed" in names:
        make_model(RELEASES / "models/tiny")
    index = folder / "cases.yml"
    if not (folder / "README.md").exists():
        write_readme(version)
    ends = yaml.safe_load(index.read_text()) if index.exists() else {}
    for name in names or CASES:
        ends[name] = record(version, name, CASES[name])
        print(f"{version} {name}: {ends[name]}", flush=True)
        index.write_text("---\n" + yaml.safe_dump(ends, sort_keys=True))


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lock", "tree", "logs", "flags", "remove"])
    parser.add_argument("version")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--day", help="what PyPI had on that day, YYYY-MM-DD")
    parser.add_argument("--torch", help="version of PyTorch, as the wheel asks for it, without +cpu")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME==VERSION", help="more pins of the lock")
    asked = parser.parse_args()
    if asked.what == "lock":
        make_lock(asked.version, asked.day, asked.torch, asked.also)
        print(lock_of(asked.version))
    elif asked.what == "tree":
        print(make_tree(asked.version))
    elif asked.what == "logs":
        make_tree(asked.version)
        record_all(asked.version, asked.cases)
    elif asked.what == "flags":
        make_tree(asked.version)
        record_flags(asked.version)
    else:
        remove(asked.version)


if __name__ == "__main__":
    sys.exit(main())
