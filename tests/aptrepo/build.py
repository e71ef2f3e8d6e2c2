#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds signed apt repositories laid out as AMD's, with small packages that behave like amdgpu-dkms.

    python tests/aptrepo/build.py DIRECTORY --kernel "$(uname -r)"

makes, ready to be served over HTTP:

    rocm/rocm.gpg.key                     the public key, armored
    amdgpu/<release>/ubuntu/              one repository a release, suites jammy and noble: amdgpu-dkms, its firmware
    distribution/                         linux-headers-<kernel>, as the distribution would offer them (suite stable)

An amdgpu-dkms built here has the version string of AMD's own. Its maintainer scripts do what DKMS does as far as
anyone can see: they need the kernel headers, lay a module file (a real ELF file with .modinfo, which modinfo reads)
into /lib/modules/<kernel>/updates/dkms and take it away again. The key is made on the spot and thrown away.
Needs dpkg-deb and gpg.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sysfs.trees import write_module

# AMD's driver release table: release -> version of the DKMS package without epoch and distribution.
PACKAGE_VERSIONS = {
    "30.10.2": "6.14.14.30100200-2226257",
    "30.30.3": "6.16.13.30300300-2327507",
    "30.30.4": "6.16.13.30300400-2341068",
    "31.40": "6.19.14.31400000-2364437",
}
# AMD ends the version with the Ubuntu release that the package was built for.
SUITES = {"jammy": "22.04", "noble": "24.04"}
# A release that does not exist, whose maintainer script fails as a broken DKMS build does.
BROKEN = {"39.10": "9.9.9.39100000-9999999"}

POSTINST = r"""#!/bin/sh
set -e
kernel=$(uname -r)
if [ "{version}" = 9.9.9 ]; then
  echo "Error! Bad return status for module build on kernel: $kernel (x86_64)" >&2
  exit 10
fi
if [ ! -d "/usr/src/linux-headers-$kernel" ]; then
  # What DKMS says, with exit code 0: the package is installed and there is no module.
  echo "Module build for kernel $kernel was skipped since the kernel headers for this kernel do not seem to be" \
    "installed."
  exit 0
fi
install -D -m 0644 /usr/src/amdgpu-{version}/amdgpu.ko "/lib/modules/$kernel/updates/dkms/amdgpu.ko"
grep -qs '^updates/dkms/amdgpu.ko:' "/lib/modules/$kernel/modules.dep" ||
  echo 'updates/dkms/amdgpu.ko:' >> "/lib/modules/$kernel/modules.dep"
"""

PRERM = """#!/bin/sh
set -e
kernel=$(uname -r)
rm -f "/lib/modules/$kernel/updates/dkms/amdgpu.ko"
sed -i '/^updates.dkms.amdgpu.ko:/d' "/lib/modules/$kernel/modules.dep" 2>/dev/null || true
"""


@dataclass(frozen=True)
class Key:
    """A throwaway signing key: its GnuPG home and its fingerprint (40 hexadecimal digits)."""

    home: Path
    fingerprint: str

    def gpg(self, *arguments: str) -> str:
        """Run gpg with this key's home."""
        return run("gpg", "--homedir", str(self.home), "--batch", "--yes", *arguments)


def run(*command: str) -> str:
    """Run a program, return its output; its complaint becomes the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def make_key(home: Path, name: str = "Test repository <test@example.invalid>") -> Key:
    """Make a signing key without a passphrase. ``home`` must be short: gpg-agent puts a socket into it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Key(home, "")
    key.gpg("--passphrase", "", "--quick-generate-key", name, "rsa3072", "sign", "never")
    listing = key.gpg("--with-colons", "--list-keys")
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    return Key(home, fingerprint)


def package(folder: Path, fields: dict[str, str], files: dict[str, Path], scripts: dict[str, str]) -> Path:
    """Build a .deb from control fields, files (path in the package to source) and maintainer scripts."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        control = root / "DEBIAN"
        control.mkdir(parents=True)
        root.chmod(0o755)
        control.chmod(0o755)
        (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
        for name, text in scripts.items():
            (control / name).write_text(text)
            (control / name).chmod(0o755)
        for name, source in files.items():
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        folder.mkdir(parents=True, exist_ok=True)
        # A file name has no epoch.
        upstream = fields["Version"].partition(":")[2] or fields["Version"]
        deb = folder / f"{fields['Package']}_{upstream}_{fields['Architecture']}.deb"
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(deb))
    return deb


def driver_packages(folder: Path, version: str, ubuntu: str) -> list[Path]:
    """Build amdgpu-dkms and amdgpu-dkms-firmware of one release for one Ubuntu release."""
    full = f"1:{version}.{ubuntu}"
    module_version = ".".join(version.split(".")[:3])
    with tempfile.TemporaryDirectory() as scratch:
        # srcversion: 23 characters that depend on the build, as the kernel's checksum of the sources does.
        srcversion = hashlib.sha256(full.encode()).hexdigest()[:23].upper()
        module = write_module(Path(scratch) / "amdgpu.ko", module_version, srcversion)
        common = {"Version": full, "Architecture": "all", "Maintainer": "Test <test@example.invalid>"}
        names = {"version": module_version}
        dkms = package(
            folder,
            {
                "Package": "amdgpu-dkms",
                **common,
                "Depends": f"amdgpu-dkms-firmware (= {full})",
                "Description": "stand-in for the amdgpu driver in DKMS format",
            },
            {f"usr/src/amdgpu-{module_version}/amdgpu.ko": module},
            {"postinst": POSTINST.format(**names), "prerm": PRERM.format(**names)},
        )
    firmware = package(
        folder,
        {"Package": "amdgpu-dkms-firmware", **common, "Description": "stand-in for the firmware of the amdgpu driver"},
        {},
        {},
    )
    return [dkms, firmware]


def headers_package(folder: Path, kernel: str) -> Path:
    """Build linux-headers-<kernel> as far as the driver's maintainer script looks at it."""
    with tempfile.TemporaryDirectory() as scratch:
        makefile = Path(scratch) / "Makefile"
        makefile.write_text("# stand-in\n")
        return package(
            folder,
            {
                "Package": f"linux-headers-{kernel}",
                "Version": "1.0",
                "Architecture": "amd64",
                "Maintainer": "Test <test@example.invalid>",
                "Description": "stand-in for kernel headers",
            },
            {f"usr/src/linux-headers-{kernel}/Makefile": makefile},
            {},
        )


def index(root: Path, suite: str, debs: list[Path], key: Key, origin: str, component: str = "main") -> None:
    """Write dists/<suite> of the repository ``root``: Packages, Release, InRelease, Release.gpg."""
    dist = root / "dists" / suite
    binary = dist / component / "binary-amd64"
    binary.mkdir(parents=True, exist_ok=True)
    stanzas = []
    for deb in debs:
        content = deb.read_bytes()
        stanzas.append(
            run("dpkg-deb", "--field", str(deb)).rstrip()
            + f"\nFilename: {deb.relative_to(root)}\nSize: {len(content)}\n"
            + f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    packages = "\n".join(stanzas).encode()
    (binary / "Packages").write_bytes(packages)
    (binary / "Packages.gz").write_bytes(gzip.compress(packages, mtime=0))
    sums = []
    for path in (binary / "Packages", binary / "Packages.gz"):
        content = path.read_bytes()
        sums.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {path.relative_to(dist)}")
    release = dist / "Release"
    release.write_text(
        f"Origin: {origin}\nLabel: {origin}\nSuite: {suite}\nCodename: {suite}\n"
        f"Architectures: amd64\nComponents: {component}\n"
        f"Date: {formatdate(time.time(), usegmt=True)}\nSHA256:\n" + "\n".join(sums) + "\n"
    )
    key.gpg("--armor", "--detach-sign", "--output", f"{release}.gpg", str(release))
    key.gpg("--clearsign", "--output", str(dist / "InRelease"), str(release))


def build(
    root: Path,
    key: Key,
    kernel: str,
    releases: dict[str, str] | None = None,
    origin: str = "repo.radeon.com",
) -> Path:
    """Build everything under ``root``. ``releases`` maps a release to its package version."""
    (root / "rocm").mkdir(parents=True, exist_ok=True)
    (root / "rocm/rocm.gpg.key").write_text(key.gpg("--armor", "--export"))
    for release, version in (releases or {**PACKAGE_VERSIONS, **BROKEN}).items():
        repository = root / "amdgpu" / release / "ubuntu"
        for suite, ubuntu in SUITES.items():
            pool = repository / "pool/main/a/amdgpu-dkms"
            index(repository, suite, driver_packages(pool, version, ubuntu), key, origin)
    distribution = root / "distribution"
    index(distribution, "stable", [headers_package(distribution / "pool", kernel)], key, "Test distribution")
    return root


DOCKER_CE_POSTINST = """#!/bin/sh
set -e
getent group docker >/dev/null || groupadd --system docker
[ ! -d /run/systemd/system ] || systemctl daemon-reload
"""


def build_docker_ce(root: Path, key: Key, programs: Path, distribution: str, suite: str) -> Path:
    """Build Docker's repository as download.docker.com lays it out, for one suite of one distribution.

    ``programs`` is a file tree with a real engine (``usr/bin/dockerd`` and so on), which goes into docker-ce whole;
    the other packages of Docker are there and empty.
    """
    repository = root / distribution
    repository.mkdir(parents=True, exist_ok=True)
    (repository / "gpg").write_text(key.gpg("--armor", "--export"))
    common = {"Version": "5:99.0.0-1", "Architecture": "amd64", "Maintainer": "Test <test@example.invalid>"}
    files = {str(path.relative_to(programs)): path for path in programs.rglob("*") if path.is_file()}
    pool = repository / "pool"
    debs = [
        package(
            pool,
            {"Package": "docker-ce", **common, "Depends": "iptables", "Description": "a Docker engine, repackaged"},
            files,
            {"postinst": DOCKER_CE_POSTINST},
        )
    ]
    for name in ("docker-ce-cli", "containerd.io", "docker-buildx-plugin"):
        debs.append(package(pool, {"Package": name, **common, "Description": "in docker-ce"}, {}, {}))
    index(repository, suite, debs, key, "Docker", component="stable")
    return repository


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kernel", required=True, help="`uname -r` of the nodes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="key") as home:
        key = make_key(Path(home))
        try:
            build(options.directory, key, options.kernel)
        finally:
            run("gpgconf", "--homedir", home, "--kill", "all")
        print(key.fingerprint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
