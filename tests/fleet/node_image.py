# SPDX-License-Identifier: Apache-2.0
"""Root file systems for the test-bed's nodes: built by mmdebstrap, cached as tar files, imported into Docker.

No image registry is needed. Where packages come from is read from this machine's own apt configuration (sources,
proxy and time checks, certificate authorities), and the same configuration is put into the node, so that
``apt-get install`` works inside it wherever it works outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "vllm-fleet-node"
IMAGE_LABEL = "io.vllm-fleet.node-image"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_HELPER = "/usr/lib/apt/apt-helper"

SUITES = ("bookworm", "trixie")
VARIANTS = ("bare", "engine")

# What a minimal server installation has. udev and kmod do not run here; roles call udevadm and modinfo.
BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)
ENGINE_PACKAGES = {
    "bookworm": ("docker.io", "python3-apt", "python3-docker"),
    "trixie": ("docker.io", "docker-cli", "python3-apt", "python3-docker"),
}

NODE_INIT = """\
#!/bin/sh
# First process of a test-bed node; hands over to systemd.
set -eu
# Docker mounts a container's cgroup tree read-only unless it is privileged. systemd and the nested engine manage
# groups of their own below the node's, so the mounts (not the file systems, which are in use) become writable.
for mount in /sys/fs/cgroup $(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts); do
    mount -o remount,bind,rw "$mount"
done
# Stand-ins for the device files of amdgpu: really there, really mapped by Docker, with the owners udev gives them.
# /dev is a fresh tmpfs at every boot. The numbers are those of /dev/null.
gpu=0
while [ "$gpu" -lt "${NODE_GPUS:-0}" ]; do
    mkdir -p /dev/dri
    [ -e /dev/kfd ] || { mknod -m 0660 /dev/kfd c 1 3; chgrp render /dev/kfd; }
    mknod -m 0660 "/dev/dri/renderD$((128 + gpu))" c 1 3
    chgrp render "/dev/dri/renderD$((128 + gpu))"
    mknod -m 0660 "/dev/dri/card$gpu" c 1 3
    chgrp video "/dev/dri/card$gpu"
    gpu=$((gpu + 1))
done
exec /sbin/init
"""

# Ansible's modules come as zip archives, of which Python compiles every file with every task: a third of what a module
# computes on a node. Here what was compiled is kept under the hash of its source.
KEEP_COMPILED = """\
import _imp, marshal, os, zipimport

def compile_once(path, source, compiled=zipimport._compile_source):
    kept = f"/var/cache/node-python/{_imp.source_hash(1, source).hex()}"
    try:
        with open(kept, "rb") as file:
            return marshal.load(file)
    except (OSError, EOFError, ValueError, TypeError):
        code = compiled(path, source)
    try:
        with open(f"{kept}.{os.getpid()}", "xb") as file:
            marshal.dump(code, file)
        os.rename(file.name, kept)
    except OSError:
        pass
    return code

zipimport._compile_source = compile_once
"""

CUSTOMIZE = """\
groupadd --force --system render
useradd --create-home --shell /bin/bash ops
install -d -m 0700 -o root -g root /root/.ssh
install -d -m 0700 -o ops -g ops /home/ops/.ssh
update-ca-certificates
install -d -m 1777 /var/cache/node-python
# Every node brings host keys of its own.
rm -f /etc/ssh/ssh_host_*
# A background apt run would hold the dpkg lock at a random moment of a test.
systemctl mask apt-daily.timer apt-daily-upgrade.timer
# Most kernel parameters belong to the whole machine: at boot a node applies only what a test has written.
mkdir -p /etc/sysctl.d
for file in /usr/lib/sysctl.d/*.conf; do
    [ ! -e "$file" ] || ln -sf /dev/null "/etc/sysctl.d/${file##*/}"
done
"""

# Documentation and translations are a third of the tar and serve no test; fsync of every unpacked file serves nobody.
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
)

# Translated descriptions are two fifths of what apt reads with every installation.
APT_OPTIONS = ('Acquire::Languages "none";',)
# A server has package lists, and apt's cache of them; a bare node has none.
CUSTOMIZE_ENGINE = "apt-cache gencaches\nrm -f /var/cache/apt/archives/*.deb\n"

# Of the machine's apt configuration: how to fetch. What to fetch, and hooks that need the machine's programs, stay out.
APT_OPTION = re.compile(
    r"Acquire::(?:(?:http|https)(?:::.*)?|Retries|Check-Valid-Until|Check-Date|M(?:ax|in)-ValidTime(?:::.*)?"
    r"|ForceIPv[46]|AllowInsecureRepositories) "
)
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


class FleetError(Exception):
    """Something the user can act on; the message is complete and needs no traceback."""


def run(
    command: Sequence[str], *, check: bool = True, timeout: float | None = 120, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and return its output as text; with ``check``, a failure is a FleetError with the output's tail."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
    except FileNotFoundError as error:
        raise FleetError(f"The program {command[0]} is not installed on this machine; install it first.") from error
    with process:
        try:
            output, errors = process.communicate(stdin, timeout)
        except BaseException as error:
            # With what it has started, which would keep its output open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise FleetError(f"`{shlex.join(command)}` was not done after {timeout} s.") from error
            raise
    text = subprocess.CompletedProcess(
        command, process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")
    )
    if check and text.returncode:
        tail = "\n".join((text.stderr.strip() or text.stdout.strip()).splitlines()[-15:])
        raise FleetError(f"`{shlex.join(command)}` failed with exit code {text.returncode}:\n{tail}")
    return text


def docker(*arguments: str, check: bool = True, timeout: float | None = 120, stdin: bytes | None = None) -> str:
    """Run a Docker command and return its stripped standard output."""
    return run(["docker", *arguments], check=check, timeout=timeout, stdin=stdin).stdout.strip()


def tar_of(files: dict[str, tuple[str, int, int]]) -> bytes:
    """Pack path -> (text, mode, owner's uid and gid) into a tar archive without directory entries.

    Directories that exist in the target keep their modes and owners that way.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (text, mode, owner) in sorted(files.items()):
            data = text.encode()
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.uid, entry.gid = len(data), mode, owner, owner
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def cache_directory() -> Path:
    """Folder of the cached tars: ``$VLLM_FLEET_CACHE/nodes``, by default ``~/.cache/vllm-fleet/nodes``."""
    root = os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet"
    return Path(root).expanduser() / "nodes"


def machine_codename() -> str:
    """Codename of this machine's Debian release; empty where the machine runs something else."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ""
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return fields.get("VERSION_CODENAME", "").strip('"') if fields.get("ID", "").strip('"') == "debian" else ""


@functools.cache
def machine_sources(suite: str) -> list[tuple[str, str]]:
    """(URI, suite) of the Debian archives in this machine's apt configuration, with its release replaced by ``suite``.

    ``apt-get indextargets`` is apt's own reading of its configuration, whatever the file format. Empty where the
    machine is no Debian; mmdebstrap's built-in default serves then.
    """
    own = machine_codename()
    if not own or not shutil.which("apt-get"):
        return []
    targets = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    found: list[tuple[str, str]] = []
    for uri, release, component in (line.split(" ") for line in targets.stdout.splitlines() if line.count(" ") == 2):
        source = (uri, suite + release[len(own) :])
        if component == "main" and release in (own, f"{own}-updates", f"{own}-security") and source not in found:
            found.append(source)
    return found


def archive_sources(suite: str) -> list[str]:
    """Lines of sources.list for ``suite``, each asked for its Release file through apt's own transport.

    Sources which do not carry the suite, or are not Debian's (a vendor may name its suite like Debian's release), are
    left out; none left is an error.
    """
    if not KEYRING.exists():
        raise FleetError(
            f"{KEYRING} is missing: install the package debian-archive-keyring, apt checks {suite} with it."
        )
    candidates = machine_sources(suite)
    kept, answers = [], []
    with tempfile.TemporaryDirectory() as folder:
        for uri, dist in candidates:
            release = Path(folder) / "Release"
            release.unlink(missing_ok=True)
            url = f"{uri.rstrip('/')}/dists/{dist}/Release"
            fetched = run([APT_HELPER, "download-file", url, str(release)], check=False)
            if fetched.returncode == 0 and re.search(r"^Origin: Debian$", release.read_text(), re.MULTILINE):
                kept.append((uri, dist))
            else:
                answers.append(f"{url}: {(fetched.stderr.strip().splitlines() or ['not from Debian'])[-1]}")
    if candidates and not any(dist == suite for _, dist in kept):
        evidence = "\n".join(answers)
        raise FleetError(
            f"The archive in this machine's apt configuration has no suite {suite}; use one that carries it, or leave "
            f"{suite} nodes out.\n{evidence}"
        )
    return [f"deb [signed-by={KEYRING}] {uri} {dist} main" for uri, dist in kept]


def apt_options() -> list[str]:
    """This machine's apt options that say how to fetch (proxy, retries, time checks), as lines of an apt.conf."""
    if not shutil.which("apt-config"):
        return []
    lines = [line for line in run(["apt-config", "dump"]).stdout.splitlines() if APT_OPTION.match(line)]
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy")
        if proxy and not any(line.startswith(f"Acquire::{scheme}::Proxy ") for line in lines):
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return lines


def machine_certificates() -> list[str]:
    """Certificates which this machine trusts beyond its distribution's own set, in PEM."""
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    shipped: set[str] = set()
    for path in Path("/usr/share/ca-certificates").rglob("*.crt"):
        shipped.update(match.strip() for match in CERTIFICATE.findall(path.read_text(errors="replace")))
    trusted = CERTIFICATE.findall(bundle.read_text(errors="replace")) if bundle.exists() else []
    # Without the shipped set nothing can be told apart; then the nodes' own set has to do.
    return sorted({match.strip() for match in trusted} - shipped) if shipped else []


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a node image contains, apart from the archive's own progress."""

    suite: str
    variant: str
    packages: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    apt_options: tuple[str, ...]
    certificates: tuple[str, ...]

    @classmethod
    def of(cls, suite: str, variant: str) -> Recipe:
        """Read this machine's configuration; refuse an unknown suite or variant."""
        if suite not in SUITES or variant not in VARIANTS:
            raise FleetError(
                f"No node image {suite}/{variant}; suites: {', '.join(SUITES)}; variants: {', '.join(VARIANTS)}."
            )
        packages = BASE_PACKAGES + (ENGINE_PACKAGES[suite] if variant == "engine" else ())
        return cls(
            suite,
            variant,
            packages,
            tuple(machine_sources(suite)),
            (*apt_options(), *APT_OPTIONS),
            tuple(machine_certificates()),
        )

    @property
    def stem(self) -> str:
        """Name of the image's kind: suite and variant."""
        return f"{self.suite}-{self.variant}"

    @property
    def overlay(self) -> dict[str, tuple[str, int, int]]:
        """Files laid over the packages' own, as `tar_of` takes them."""
        files = {
            "/usr/local/sbin/node-init": (NODE_INIT, 0o755, 0),
            "/etc/default/locale": ("LANG=C.UTF-8\n", 0o644, 0),
            "/usr/lib/python3/dist-packages/node_compiled.py": (KEEP_COMPILED, 0o644, 0),
            "/usr/lib/python3/dist-packages/node_compiled.pth": ("import node_compiled\n", 0o644, 0),
            "/etc/sudoers.d/ops": ("ops ALL=(ALL) NOPASSWD: ALL\n", 0o440, 0),
        }
        for number, pem in enumerate(self.certificates, 1):
            files[f"/usr/local/share/ca-certificates/machine-{number}.crt"] = (pem + "\n", 0o644, 0)
        return files

    @property
    def customize(self) -> str:
        """What is run in the file system at its end."""
        return CUSTOMIZE + (CUSTOMIZE_ENGINE if self.variant == "engine" else "")

    @property
    def key(self) -> str:
        """Twelve hex digits that change with any input."""
        inputs = [self.packages, self.sources, self.apt_options, self.overlay, self.customize, DPKG_OPTIONS]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]

    @property
    def tag(self) -> str:
        """Full name of the image in Docker."""
        return f"{REPOSITORY}:{self.stem}-{self.key}"

    @property
    def archive(self) -> Path:
        """The cached tar file."""
        return cache_directory() / f"{self.stem}-{self.key}.tar"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One builder at a time: two would take the machine's memory and write the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_archive(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Run mmdebstrap into the recipe's tar; the file appears complete or not at all."""
    if not shutil.which("mmdebstrap"):
        raise FleetError("mmdebstrap is not installed on this machine: apt-get install mmdebstrap.")
    sources = archive_sources(recipe.suite)
    partial = recipe.archive.with_suffix(".part.tar")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o755)  # apt's unprivileged user reads the sources
        (work / "overlay.tar").write_bytes(tar_of(recipe.overlay))
        (work / "debian.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        (work / "apt.conf").write_text("\n".join(recipe.apt_options) + "\n", encoding="utf-8")
        command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}"]
        command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
        command += [f"--aptopt={work / 'apt.conf'}"]
        command += ["--skip=cleanup/apt/lists,cleanup/apt/cache"] if recipe.variant == "engine" else []
        command += [f"--customize-hook=tar-in {work / 'overlay.tar'} /"]
        command += [f'--customize-hook=chroot "$1" sh -euc {shlex.quote(recipe.customize)}']
        command += [recipe.suite, str(partial)]
        command += [str(work / "debian.list")] if sources else []
        say(f"building the node image {recipe.stem}: {len(recipe.packages)} packages and what they need")
        try:
            run(command, timeout=1800)
            partial.rename(recipe.archive)
        finally:
            partial.unlink(missing_ok=True)


def remove_superseded(recipe: Recipe) -> None:
    """Delete tars and images of the same kind with other inputs, unless a container still uses them."""
    for old in cache_directory().glob(f"{recipe.stem}-*.tar"):
        if old != recipe.archive:
            old.unlink()
    kind = f"label={IMAGE_LABEL}={recipe.stem}"
    for tag in docker("image", "ls", "--filter", kind, "--format", "{{.Repository}}:{{.Tag}}").splitlines():
        if tag != recipe.tag and tag.startswith(f"{REPOSITORY}:"):
            docker("image", "rm", tag, check=False)


def ensure_image(suite: str, variant: str, *, rebuild: bool = False, say: Callable[[str], None] = print) -> str:
    """Return the tag of the node image, imported from the cache or built where it is missing.

    ``rebuild`` takes the archive's newer packages, which the inputs' hash does not see.
    """
    recipe = Recipe.of(suite, variant)
    with locked(cache_directory()):
        start = time.monotonic()
        present = run(["docker", "image", "inspect", recipe.tag], check=False)
        if present.returncode == 0 and not rebuild:
            return recipe.tag
        if rebuild or not recipe.archive.exists():
            build_archive(recipe, say)
        command = '["/usr/local/sbin/node-init"]'
        docker(
            *("import", "--change", f"CMD {command}", "--change", f"LABEL {IMAGE_LABEL}={recipe.stem}"),
            *(str(recipe.archive), recipe.tag),
            timeout=300,
        )
        remove_superseded(recipe)
        megabytes = recipe.archive.stat().st_size / 1e6
        say(f"{recipe.tag}: {megabytes:.0f} MB, ready after {time.monotonic() - start:.1f} s")
    return recipe.tag
