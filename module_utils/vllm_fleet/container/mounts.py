# SPDX-License-Identifier: Apache-2.0
"""What is mounted where: volumes in one spelling, and those that cannot be. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .fields import NodeFacts, SpecError
from .options import ContainerOptions

#: Where the Hugging Face home and the engine's own caches appear inside the container (vLLM's documented
#: ``-v ~/.cache/huggingface:/root/.cache/huggingface``).
HF_HOME = "/root/.cache/huggingface"
ENGINE_CACHE = "/root/.cache/vllm"
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
#: What Docker takes behind a mount's second colon, several with commas.
_MOUNT_MODES = frozenset(
    {"ro", "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated"}
    | {prefix + word for prefix in ("", "r") for word in ("shared", "slave", "private")}
)
#: Modes that change nothing on Linux: Docker's default propagation, and words for other systems.
_MODES_WITHOUT_EFFECT = frozenset({"rprivate", "consistent", "cached", "delegated"})

#: What runc lets anybody mount in /proc (opencontainers/runc libcontainer/rootfs_linux.go).
_IN_PROC = frozenset(
    f"/proc/{name}"
    for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "uptime")
)


@dataclass(frozen=True)
class Volume:
    """A bind mount or a named volume."""

    source: str
    target: str
    mode: str = "rw"

    def __str__(self) -> str:
        """Write it as Docker does: source:target:mode."""
        return f"{self.source}:{self.target}:{self.mode}"


def parse_volume(text: str) -> Volume:
    """Read ``source:target[:mode]``."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts) or not parts[1].startswith("/"):
        raise SpecError(f"volumes: expected source:/target[:ro|rw], got {text!r}")
    return volume(parts[0], parts[1], parts[2] if len(parts) == 3 else "rw")


def volume(source: str, target: str, mode: str) -> Volume:
    """Return a mount in one spelling: no slash too many, the access first, no word that changes nothing."""
    words = set(mode.split(",")) - _MODES_WITHOUT_EFFECT
    access = [word for word in ("ro", "rw") if word in words] or ["rw"]
    source = normal_path(source) if source.startswith("/") else source
    return Volume(source, normal_path(target), ",".join([*access, *sorted(words - {"ro", "rw"})]))


def normal_path(path: str) -> str:
    """Return a path without ``.``, ``..`` and slashes too many; Python keeps two leading ones."""
    return re.sub("^//", "/", posixpath.normpath(path))


def volumes(
    options: ContainerOptions, node: NodeFacts, env: Mapping[str, str], engine_cache: str | None
) -> tuple[Volume, ...]:
    """Return what is mounted, by target: the user's volumes, the cache, the model's folder. Raises SpecError."""
    volumes = list(dict.fromkeys(parse_volume(v) for v in options.volumes))
    if options.hf_cache:
        mode = "ro" if env.get("HF_HUB_OFFLINE") == "1" else "rw"
        if node.hf_hub_target:
            volumes.append(volume(node.hf_hub_target, f"{HF_HOME}/hub", mode))
        else:
            volumes.append(volume(options.hf_cache, HF_HOME, mode))
    model = normal_path(options.model)
    if model.startswith("/") and not any(model == v.target or model.startswith(v.target + "/") for v in volumes):
        volumes.append(Volume(model, model, "ro"))
    if engine_cache:
        volumes.append(Volume(engine_cache, ENGINE_CACHE, "rw"))
    _check_mounts(volumes)
    return tuple(sorted(volumes, key=lambda v: v.target))


def _check_mounts(volumes: Sequence[Volume]) -> None:
    """Refuse mounts that Docker would refuse, and two at one place."""
    taken: dict[str, Volume] = {}
    for volume in volumes:
        target = volume.target
        if ":" in volume.source + target:
            raise SpecError(f"volumes: expected paths without a colon, which Docker cannot mount, got '{volume}'")
        if not volume.source.startswith("/") and not _VOLUME_NAME.fullmatch(volume.source):
            raise SpecError(f"volumes: expected an absolute path or a volume's name before :{target}, got {volume}")
        if target == "/" or not _MOUNT_MODES.issuperset(volume.mode.split(",")):
            raise SpecError(f"volumes: expected source:/target[:ro|rw], got '{volume}'")
        _check_system_folder(volume)
        if target in taken:
            raise SpecError(
                f"volumes: expected one mount at {target}, got {taken[target].source} and {volume.source}"
                + {
                    HF_HOME: "; option hf_cache (hf_cache_path) mounts there",
                    ENGINE_CACHE: "; engine_cache mounts there",
                }.get(target, "")
            )
        taken[target] = volume


def _check_system_folder(volume: Volume) -> None:
    """Refuse what hides a folder of the kernel: Docker takes it, and the container cannot start or sees no GPU."""
    if (volume.target == "/proc" or volume.target.startswith("/proc/")) and volume.target not in _IN_PROC:
        raise SpecError(f"volumes: expected no mount in /proc, which belongs to the kernel, got '{volume}'")
    if volume.target in ("/dev", "/sys") and volume.source != volume.target:
        raise SpecError(
            f"volumes: expected no mount that hides {volume.target}, where the kernel shows the devices, got '{volume}'"
        )
