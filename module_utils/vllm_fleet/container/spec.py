# SPDX-License-Identifier: Apache-2.0
"""Options to the desired container, normalised. Pure: the node's facts come in as values."""

from __future__ import annotations

import itertools
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..vllm import cli
from ..weights import layout
from .options import ContainerOptions

#: Where the Hugging Face home and the engine's own caches appear inside the container (vLLM's documented
#: ``-v ~/.cache/huggingface:/root/.cache/huggingface``).
HF_HOME = "/root/.cache/huggingface"
ENGINE_CACHE = "/root/.cache/vllm"

#: The port that ``vllm serve`` listens on when no flag says so (vLLM 0.32.0 entrypoints/openai/cli_args.py).
CONTAINER_PORT = 8000

#: Labels under this prefix are the project's own notes on a container, not something a user asked for.
LABEL_PREFIX = "io.vllm-fleet."
LABEL_IMAGE_ID = LABEL_PREFIX + "image-id"
LABEL_MANAGED = LABEL_PREFIX + "managed"
#: The server that a container was made for, while it has another name yet.
LABEL_SERVER = LABEL_PREFIX + "server"
#: The share of GPU memory that was asked for, on a container that was given a lower one.
LABEL_ASKED_UTILIZATION = LABEL_PREFIX + "asked-gpu-memory-utilization"
UTILIZATION = "gpu-memory-utilization"

#: Environment variables whose values are never shown.
SECRET_ENV = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: Singular on purpose: vLLM has many settings that count tokens, and hiding a "1" would hide every 1 in the output.
_SECRET_NAME = re.compile(
    r"(?:(?:^|_)(?:TOKEN|KEY|SECRET)|(?:API|ACCESS|PRIVATE|SECRET)KEY|PASSWORD|PASSWD|CREDENTIALS?)$", re.I
)

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)i?b?\s*$", re.I)
_CONTAINER_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
#: ``source[:target][:permissions]`` of a device, as `docker run --device` takes it.
_DEVICE = re.compile(r"(/[^:]*)(?::(/[^:]*))?(?::([rwm]+))?")
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
#: What Docker takes behind a mount's second colon, several with commas.
_MOUNT_MODES = frozenset(
    {"ro", "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated"}
    | {prefix + word for prefix in ("", "r") for word in ("shared", "slave", "private")}
)
#: Modes that change nothing on Linux: Docker's default propagation, and words for other systems.
_MODES_WITHOUT_EFFECT = frozenset({"rprivate", "consistent", "cached", "delegated"})
#: Docker's names of limits (go-units ulimit.go).
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
_IPC_MODES = ("host", "private", "shareable", "none")
#: What Go reads as a boolean.
_TRUE, _FALSE = frozenset({"1", "t", "true"}), frozenset({"0", "f", "false"})
#: What Linux gives a process for one variable (MAX_ARG_STRLEN).
_MAX_TEXT = 128 << 10
#: The largest id of a group (Docker and runc use 32 bits with a sign).
_MAX_ID = 2**31 - 1
_RESTART_POLICY = re.compile(r"(no|always|unless-stopped|on-failure)|on-failure:(\d+)")

#: Linux' capabilities by their numbers (linux/capability.h; the last one came with 5.9).
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
ALL_CAPABILITIES = ("ALL",)


def overlap(one: str, other: str) -> bool:
    """Tell whether two addresses share a port of their machine."""
    everything = ("", "0.0.0.0", "::")  # noqa: S104
    return one in everything or other in everything or one == other or (one in LOOPBACK and other in LOOPBACK)


class SpecError(ValueError):
    """An option is wrong; the text says which, what was expected, what was got and what to do."""


@dataclass(frozen=True)
class Image:
    """What an image contributes to a container. ``ids`` holds every digest by which Docker may name it."""

    ref: str
    id: str
    ids: frozenset[str] = frozenset()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ulimit:
    """A resource limit; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Volume:
    """A bind mount or a named volume."""

    source: str
    target: str
    mode: str = "rw"

    def __str__(self) -> str:
        """Write it as Docker does: source:target:mode."""
        return f"{self.source}:{self.target}:{self.mode}"


@dataclass(frozen=True)
class Spec:
    """The desired container. Lists whose order Docker ignores are sorted, names are Docker's."""

    name: str
    image: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    volumes: tuple[Volume, ...]
    devices: tuple[str, ...]
    groups: tuple[str, ...]
    ipc_mode: str | None
    shm_size: int | None
    capabilities: tuple[str, ...]
    security_opts: tuple[str, ...]
    ulimits: tuple[Ulimit, ...]
    network_mode: str
    ports: Mapping[str, str]
    restart_policy: str
    stop_timeout: int
    labels: Mapping[str, str]
    secrets: frozenset[str] = frozenset()
    asked_utilization: str | None = None


@dataclass(frozen=True)
class NodeFacts:
    """What the spec needs to know of the node.

    ``gids``: numeric ids of the groups video and render and of the device nodes' owners; None entries are left out.
    ``hf_hub_target``: where ``<hf_cache>/hub`` really is when it is a symbolic link, which a container could not
    follow. ``groups``: numeric ids of those groups that the options name, as far as the node has them.
    """

    gids: tuple[int, ...] = ()
    hf_hub_target: str | None = None
    groups: Mapping[str, int] = field(default_factory=dict)


#: AMD's and vLLM's documented `docker run` line for ROCm, plus what the engine asks for on start:
#: docs.vllm.ai installation/gpu (rocm) and rocm.docs.amd.com vLLM inference pages; nofile from vLLM 0.32.0
#: utils/system_utils.py:255; memlock unlimited for RDMA and pinned memory.
ROCM_DEVICES = ("/dev/dri", "/dev/kfd")
ROCM_IPC_MODE = "host"
ROCM_CAPABILITIES = ("SYS_PTRACE",)
ROCM_SECURITY_OPTS = ("seccomp=unconfined",)
ROCM_ULIMITS = (Ulimit("memlock", -1, -1), Ulimit("nofile", 65535, 65535))


#: vLLM's documented `docker run` line for CPUs (docs.vllm.ai installation/cpu) has --shm-size=4g: the executor asks for
#: 160 MiB of shared memory at once and Docker gives 64 by default, or what its daemon.json says. It is always set, for
#: what is left to the daemon could not be told from another wish.
SHM_SIZE = 4 << 30


def is_secret(name: str) -> bool:
    """Return whether the value of an environment variable, or of a flag, must never be shown."""
    return name in SECRET_ENV or bool(_SECRET_NAME.search(name.replace("-", "_")))


def secret_values(values: object) -> set[str]:
    """Return the values of ``env`` or ``args`` that must never be shown.

    Short ones are left out: to hide a "1" would hide every 1 in what is shown.
    """
    if not isinstance(values, Mapping):
        return set()
    found = {str(v) for k, v in values.items() if is_secret(str(k)) and not isinstance(v, (bool, type(None)))}
    return {value for value in found if len(value) > 3}


def parse_size(value: object, option: str) -> int | None:
    """Read a size such as ``16g`` or ``16GiB`` into bytes; None stays None."""
    if value is None or value == "":
        return None
    match = _SIZE.match(str(value))
    if not match:
        raise SpecError(f"{option}: expected a size such as 16g, got {value!r}")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


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


def security_options(given: Sequence[object]) -> list[str]:
    """Write security options in one way: ``name=value``, for Docker keeps the spelling that it was given."""
    words = set()
    for item in map(str, given):
        name, equals, value = (item if "=" in item else item.replace(":", "=", 1)).partition("=")
        if name == "no-new-privileges":
            if value.lower() in _FALSE:
                continue  # as if it were not there
            value = "true" if not equals or value.lower() in _TRUE else value
            equals = "="
        words.add(f"{name}{equals}{value}")
    return sorted(words)


def parse_device(text: str) -> str:
    """Read ``source[:target][:permissions]``; see :func:`device` for what it gives."""
    match = _DEVICE.fullmatch(text)
    if not match:
        raise SpecError(f"devices: expected /dev/name[:/path/in/the/container][:rwm], got {text!r}")
    return device(match[1], match[2] or match[1], match[3] or "rwm")


def device(source: str, target: str, permissions: str) -> str:
    """Write a device in one way: by its path alone where the container has it there with all permissions."""
    source, target = posixpath.normpath(source), posixpath.normpath(target)
    permissions = "".join(one for one in "rwm" if one in permissions)
    return source if (target, permissions) == (source, "rwm") else f"{source}:{target}:{permissions}"


def capability_names(names: Sequence[object]) -> list[str]:
    """Write capabilities in one way, as ``SYS_PTRACE``; what stands beside ``ALL`` is in it."""
    found = {str(name).upper().removeprefix("CAP_") for name in names}
    return list(ALL_CAPABILITIES) if "ALL" in found else sorted(found)


def parse_restart_policy(value: str) -> str:
    """Read Docker's restart policy; ``on-failure`` may have a number of attempts behind a colon."""
    match = _RESTART_POLICY.fullmatch("no" if value == "False" else value)  # YAML reads a bare no as false
    if not match:
        raise SpecError(
            f"restart_policy: expected no, always, unless-stopped, on-failure or on-failure:<attempts>, got {value!r}"
        )
    attempts = int(match[2] or 0)
    return match[1] or ("on-failure" + (f":{attempts}" if attempts else ""))


def parse_ulimit(value: str) -> Ulimit:
    """Read ``name=soft[:hard]``; ``-1`` and ``unlimited`` mean no limit."""
    name, equals, numbers = value.partition("=")
    soft, _, hard = numbers.partition(":")
    try:
        if not name or not equals:
            raise ValueError
        low = -1 if soft == "unlimited" else int(soft)
        high = low if not hard else (-1 if hard == "unlimited" else int(hard))
    except ValueError:
        raise SpecError(f"ulimits: expected name=soft[:hard], got {value!r}") from None
    name = name.lower()
    if name not in _ULIMITS:
        raise SpecError(f"ulimits: expected one of {', '.join(_ULIMITS)}, got {name!r}")
    if high != -1 and not 0 <= low <= high:
        raise SpecError(f"ulimits: {name}: expected a soft limit that is not above the hard one, got {value!r}")
    return Ulimit(name, low, high)


def check_image_ref(ref: str, *, allow_latest: bool = False) -> None:
    """Refuse an image without a fixed tag or digest: a moving name makes two nodes run two servers."""
    if not ref or ref.strip() != ref or " " in ref:
        raise SpecError(f"image: expected repository:tag or repository@sha256:..., got {ref!r}")
    if "@sha256:" in ref or re.fullmatch(r"sha256:[0-9a-f]{64}", ref):
        return
    tag = ref.rsplit("/", 1)[-1].partition(":")[2]
    if tag in ("", "latest") and not allow_latest:
        what = "has no tag, which means latest" if not tag else "is tagged latest"
        repo = ref.removesuffix(":latest")
        raise SpecError(
            f"image: {ref} {what}: it names another image tomorrow. Pin it: a version tag "
            f"({repo}:v0.32.0) or better a digest ({repo}@sha256:..., from "
            f"`docker image inspect --format '{{{{.RepoDigests}}}}' {ref}`)"
        )


def check_model(model: str) -> None:
    """Refuse what is neither a Hub id nor an absolute path, before vLLM guesses."""
    if model.startswith("/"):
        return
    try:
        layout.check_repo_id(model)
    except layout.SnapshotError as exc:
        raise SpecError(f"model: {exc}") from None


def check_args(options: ContainerOptions) -> None:
    """Refuse arguments of ``vllm serve`` that cannot be read. Raises SpecError."""
    if options.args_problem:
        raise SpecError(options.args_problem)


def build(
    options: ContainerOptions,
    image: Image,
    node: NodeFacts,
    *,
    shutdown_timeout: bool,
    engine_cache: str | None = None,
) -> Spec:
    """Return the desired container. Raises SpecError with a sentence for the user.

    ``engine_cache``: folder on the node for the engine's compile caches. ``shutdown_timeout`` says that the image's
    vLLM knows ``--shutdown-timeout`` (since 0.18).
    """
    if not _CONTAINER_NAME.match(options.name):
        raise SpecError(f"name: expected a container name ([a-zA-Z0-9][a-zA-Z0-9_.-]+), got {options.name!r}")
    check_model(options.model)
    bind = _address(options.bind, published=options.network_mode != "host")
    if not 1 <= options.port <= 65535:
        raise SpecError(f"port: expected 1 to 65535, got {options.port}")
    check_args(options)
    check_utilization(options.flags.get(UTILIZATION))
    _check_plain_http(options.flags)
    rocm = options.rocm
    ipc_mode = _ipc_mode(options.ipc_mode) or (ROCM_IPC_MODE if rocm else None)
    entrypoint = cli.entrypoint_for(image.entrypoint, options.entrypoint)
    extra = _own_flags(options, bind, shutdown_timeout=shutdown_timeout)
    env = _env(options, engine_cache)
    _check_texts(options, env)
    spec = Spec(
        name=options.name,
        image=options.image,
        entrypoint=tuple(entrypoint),
        command=tuple(cli.build(options.model, options.flags, entrypoint=entrypoint, extra=extra)),
        env=env,
        volumes=_volumes(options, node, env, engine_cache),
        devices=_devices(_given(options.devices, ROCM_DEVICES if rocm else ())),
        groups=_groups(options.groups, node, rocm=rocm),
        ipc_mode=ipc_mode,
        shm_size=parse_size(options.shm_size, "shm_size") or (None if ipc_mode == "host" else SHM_SIZE),
        capabilities=_capabilities(_given(options.capabilities, ROCM_CAPABILITIES if rocm else ())),
        security_opts=_security_opts(_given(options.security_opts, ROCM_SECURITY_OPTS if rocm else ())),
        ulimits=_ulimits(options.ulimits, rocm=rocm),
        network_mode=options.network_mode,
        ports={} if options.network_mode == "host" else {f"{CONTAINER_PORT}/tcp": f"{bind}:{options.port}"},
        restart_policy=parse_restart_policy(options.restart_policy),
        stop_timeout=options.stop_timeout,
        labels=options.labels,
        secrets=frozenset(key for key in env if is_secret(key)),
    )
    _check_exposure(spec, bind, allow=options.allow_unauthenticated)
    return spec


def _own_flags(options: ContainerOptions, bind: str, *, shutdown_timeout: bool) -> dict[str, str]:
    """Return the flags that come of other options than ``args``."""
    own: dict[str, str] = {}
    if options.revision:
        own["revision"] = options.revision
    if options.network_mode == "host":
        own |= {"host": bind, "port": str(options.port)}
    if shutdown_timeout and "shutdown-timeout" not in options.flags:
        # Below Docker's own limit, so that vLLM ends by itself and is not killed in the middle of the last answer.
        own["shutdown-timeout"] = str(max(0, options.stop_timeout - max(2, options.stop_timeout // 6)))
    return own


def _given(value: tuple[str, ...] | None, default: Sequence[str]) -> Sequence[str]:
    return default if value is None else value


def check_utilization(value: object) -> None:
    """Refuse a --gpu-memory-utilization outside (0, 1]."""
    if value is None:
        return
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise SpecError(f"args: gpu-memory-utilization: expected a fraction above 0 and at most 1, got {value!r}")


def _check_plain_http(flags: Mapping[str, object]) -> None:
    """Refuse what would leave the port without HTTP: by that the server is watched, verified and admitted."""
    for name, value in flags.items():
        if value not in (None, False) and (name in ("uds", "grpc") or name.startswith("ssl-")):
            raise SpecError(
                f"args: {name}: the server has to speak plain HTTP on its port, where it is watched and verified; "
                "leave it out, and end TLS at the gateway (gateway_certificate)"
            )


def with_utilization(spec: Spec, utilization: float) -> Spec:
    """Return the same container with another --gpu-memory-utilization (policy ``fit``), which remembers its own."""
    words = list(spec.command)
    flag = f"--{UTILIZATION}"
    text = f"{utilization:g}"
    if flag in words:
        words[words.index(flag) + 1] = text
    else:
        words += [flag, text]
    return replace(spec, command=tuple(words), asked_utilization=spec.asked_utilization or utilization_of(spec.command))


def utilization_of(words: Sequence[str]) -> str:
    """Return the --gpu-memory-utilization of a command line as it is written; ``default`` where it is left to vLLM."""
    return str(cli.parse(words).flags.get(UTILIZATION, "default"))


def _address(bind: str, *, published: bool) -> str:
    """Return the address to listen on. What is no address Docker takes for all of them, without a word."""
    if not published or bind in ("127.0.0.1", "0.0.0.0", "::1", "::"):  # noqa: S104
        return bind
    if bind in ("", "localhost"):
        return "127.0.0.1" if bind else "0.0.0.0"  # noqa: S104  Docker's own default
    import ipaddress  # noqa: PLC0415  nearly no run needs it

    try:
        return str(ipaddress.ip_address(bind))
    except ValueError:
        raise SpecError(f"bind: expected an IP address of the node, or localhost, got {bind!r}") from None


def _check_exposure(spec: Spec, bind: str, *, allow: bool) -> None:
    if bind in LOOPBACK or allow or spec.env.get("VLLM_API_KEY"):
        return
    raise SpecError(
        f"bind: {bind} is reachable from outside the node and there is no api_key; set api_key (vllm_server_api_key, "
        f"from vault), keep bind at 127.0.0.1, or say allow_unauthenticated: true if anyone may use this server"
    )


def _env(options: ContainerOptions, engine_cache: str | None) -> dict[str, str]:
    """Return the environment: defaults, then the user's, then the secrets."""
    env: dict[str, str] = {
        # vLLM gives up on its own engine after 600 s by default, in the middle of a long load
        # (vLLM 0.32.0 v1/engine/core_client.py:739); how long to wait is decided by ready_timeout alone.
        "VLLM_ENGINE_READY_TIMEOUT_S": "86400",
    }
    if options.hf_cache:
        env |= {"HF_HOME": HF_HOME, "HF_HUB_OFFLINE": "1"}
    if engine_cache:
        # One folder survives the container: vLLM's own (torch.compile), Triton's and Inductor's, and the Python files
        # of trust-remote-code models, which would otherwise be written beside the read-only weights. AITER's is not
        # moved: with AITER_JIT_DIR set it does not find the modules that the image brings prebuilt, and was seen to
        # hang while it built them (ROCm/aiter issue 3635). `env` may set it to a folder under the same mount.
        env |= {
            "VLLM_CACHE_ROOT": ENGINE_CACHE,
            "TRITON_CACHE_DIR": f"{ENGINE_CACHE}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{ENGINE_CACHE}/inductor",
            "HF_MODULES_CACHE": f"{ENGINE_CACHE}/modules",
        }
    for key, value in options.env.items():
        if value is None:
            env.pop(key, None)
        elif isinstance(value, bool):
            # YAML's true would arrive as Python's True, which no program reads; 1 and 0 are what vLLM's switches take.
            env[key] = "1" if value else "0"
        else:
            env[key] = str(value)
    if options.api_key:
        env["VLLM_API_KEY"] = options.api_key
    if options.hf_token and env.get("HF_HUB_OFFLINE", "0") not in ("1", "ON", "YES", "TRUE"):
        env["HF_TOKEN"] = options.hf_token
    return env


def _volumes(
    options: ContainerOptions, node: NodeFacts, env: Mapping[str, str], engine_cache: str | None
) -> tuple[Volume, ...]:
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
        if target in taken:
            raise SpecError(
                f"volumes: expected one mount at {target}, got {taken[target].source} and {volume.source}"
                + {
                    HF_HOME: "; option hf_cache (hf_cache_path) mounts there",
                    ENGINE_CACHE: "; engine_cache mounts there",
                }.get(target, "")
            )
        taken[target] = volume


def _capabilities(given: Sequence[str]) -> tuple[str, ...]:
    names = capability_names(given)
    unknown = [name for name in names if name not in (*CAPABILITIES, *ALL_CAPABILITIES)]
    if unknown:
        import difflib  # noqa: PLC0415  only for this sentence

        near = difflib.get_close_matches(unknown[0], CAPABILITIES, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SpecError(
            f"capabilities: expected names such as SYS_PTRACE (man 7 capabilities), got {unknown[0]!r}{hint}"
        )
    return tuple(names)


def _groups(wanted: Sequence[str] | None, node: NodeFacts, *, rocm: bool) -> tuple[str, ...]:
    """Return numeric ids: a name would be looked up in the image, where it may be missing or mean another group."""
    given = ([str(gid) for gid in node.gids] if rocm else []) if wanted is None else wanted
    missing = [one for one in given if not _is_number(one) and one not in node.groups]
    if missing:
        raise SpecError(
            f"groups: expected groups of this node, by name or number (`getent group`), got {', '.join(missing)}"
        )
    large = [one for one in given if _is_number(one) and int(one) > _MAX_ID]
    if large:
        raise SpecError(f"groups: expected a number up to {_MAX_ID}, got {', '.join(large)}")
    return tuple(sorted({str(int(one) if _is_number(one) else node.groups[one]) for one in given}))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _ulimits(given: Sequence[str] | None, *, rocm: bool) -> tuple[Ulimit, ...]:
    if given is None:
        return ROCM_ULIMITS if rocm else ()
    found = sorted({parse_ulimit(v) for v in given}, key=lambda u: u.name)
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise SpecError(f"ulimits: expected one limit for {one.name}, got two")
    return tuple(found)


def _devices(given: Sequence[str]) -> tuple[str, ...]:
    found = sorted({parse_device(d) for d in given})
    places = [d.split(":")[1] if ":" in d else d for d in found]
    for place in places:
        if places.count(place) > 1:
            both = " and ".join(d for d, at in zip(found, places, strict=True) if at == place)
            raise SpecError(f"devices: expected one device at {place}, got {both}")
    return tuple(found)


def _ipc_mode(given: str | None) -> str | None:
    """Docker itself looks at it only when it starts the container."""
    if given and given not in _IPC_MODES and not given.startswith("container:"):
        raise SpecError(f"ipc_mode: expected {', '.join(_IPC_MODES)} or container:<name>, got {given!r}")
    return given


def _security_opts(given: Sequence[str]) -> tuple[str, ...]:
    found = security_options(given)
    for item in found:
        name, _, value = item.partition("=")
        if name == "seccomp" and value not in ("", "unconfined", "builtin") and not _is_json(value):
            raise SpecError(
                "security_opts: seccomp: expected unconfined or the profile itself as JSON (only the docker command "
                f"reads a path), got {value[:60]!r}"
            )
    return tuple(found)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _check_texts(options: ContainerOptions, env: Mapping[str, str]) -> None:
    """Refuse names and texts that Docker keeps as something else, or that no process can be given."""
    if options.network_mode == "none" and not options.headless:
        raise SpecError("network_mode: expected a network, for a server without one cannot be reached, got none")
    if options.stop_timeout < 0:
        raise SpecError(f"stop_timeout: expected 0 or more seconds, got {options.stop_timeout}")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise SpecError(f"env: expected a name without '=' and a text without a null byte, got {name!r}")
        if len(f"{name}={value}".encode()) >= _MAX_TEXT:
            raise SpecError(f"env: expected less than {_MAX_TEXT} bytes for one variable, got more for {name}")
    for name in options.labels:
        if not name or name.startswith(LABEL_PREFIX):
            raise SpecError(f"labels: expected a name that does not begin with {LABEL_PREFIX}, got {name!r}")
