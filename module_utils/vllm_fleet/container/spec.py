# SPDX-License-Identifier: Apache-2.0
"""Options to the desired container, normalised. Pure: the node's facts come in as values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..common import names
from ..common.secrets import is_hidden, unsendable
from ..vllm import cli
from ..weights import layout
from . import fields, mounts
from .fields import NodeFacts, SpecError, Ulimit
from .mounts import ENGINE_CACHE, HF_HOME, Volume
from .options import ContainerOptions

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
#: Indices of the GPUs that the server was given of a node that it shares.
LABEL_GPUS = LABEL_PREFIX + "gpus"
#: Variables that follow from GPUs and CPUs that a server was given.
VISIBLE, OMP_BIND = "HIP_VISIBLE_DEVICES", "VLLM_CPU_OMP_THREADS_BIND"
UTILIZATION = "gpu-memory-utilization"

#: Secrets that have an option of their own.
SECRET_ENV = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
#: What Linux gives a process for one variable (MAX_ARG_STRLEN).
_MAX_TEXT = 128 << 10


def overlap(one: str, other: str) -> bool:
    """Tell whether two addresses share a port of their machine."""
    everything = ("", "0.0.0.0", "::")  # noqa: S104
    return one in everything or other in everything or one == other or (one in LOOPBACK and other in LOOPBACK)


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
    #: A hash of what it is, the same in both kinds of image store (image.content_id).
    content: str = ""


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
    gpus: tuple[int, ...] | None = None
    cpuset: str | None = None


#: vLLM's documented `docker run` line for CPUs (docs.vllm.ai installation/cpu) has --shm-size=4g: the executor asks for
#: 160 MiB of shared memory at once and Docker gives 64 by default, or what its daemon.json says. It is always set, for
#: what is left to the daemon could not be told from another wish.
SHM_SIZE = 4 << 30


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
    if wrong := names.wrong_container(options.name):
        raise SpecError(wrong)
    check_model(options.model)
    bind = _address(options.bind, published=options.network_mode != "host")
    if not 1 <= options.port <= 65535:
        raise SpecError(f"port: expected 1 to 65535, got {options.port}")
    check_args(options)
    check_utilization(options.flags.get(UTILIZATION))
    _check_plain_http(options.flags)
    rocm = options.rocm
    ipc_mode = fields.ipc_mode(options.ipc_mode) or (fields.ROCM_IPC_MODE if rocm else None)
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
        volumes=mounts.volumes(options, node, env, engine_cache),
        devices=fields.devices(_given(options.devices, fields.ROCM_DEVICES if rocm else ())),
        groups=fields.groups(options.groups, node, rocm=rocm),
        ipc_mode=ipc_mode,
        shm_size=fields.parse_size(options.shm_size, "shm_size") or (None if ipc_mode == "host" else SHM_SIZE),
        capabilities=fields.capabilities(_given(options.capabilities, fields.ROCM_CAPABILITIES if rocm else ())),
        security_opts=fields.security_opts(_given(options.security_opts, fields.ROCM_SECURITY_OPTS if rocm else ())),
        ulimits=fields.ulimits(options.ulimits, rocm=rocm),
        network_mode=options.network_mode,
        ports={} if options.network_mode == "host" else {f"{CONTAINER_PORT}/tcp": f"{bind}:{options.port}"},
        restart_policy=fields.parse_restart_policy(options.restart_policy),
        stop_timeout=options.stop_timeout,
        labels=options.labels,
        secrets=frozenset(key for key, value in env.items() if is_hidden(key, value)),
        gpus=options.given_gpus,
        cpuset=options.cpuset,
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
    if options.hf_token and env.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "ON", "YES", "TRUE"):
        env["HF_TOKEN"] = options.hf_token
    return env


def _check_texts(options: ContainerOptions, env: Mapping[str, str]) -> None:
    """Refuse names and texts that Docker keeps as something else, or that no process can be given."""
    if options.network_mode == "none" and not options.headless:
        raise SpecError("network_mode: expected a network, for a server without one cannot be reached, got none")
    if options.stop_timeout < 0:
        raise SpecError(f"stop_timeout: expected 0 or more seconds, got {options.stop_timeout}")
    for option, key in (("api_key", options.api_key), ("hf_token", options.hf_token)):
        if unsendable(key):
            raise SpecError(f"{option}: expected printable ASCII without spaces; look for a line break at its end")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise SpecError(f"env: expected a name without '=' and a text without a null byte, got {name!r}")
        if len(f"{name}={value}".encode()) >= _MAX_TEXT:
            raise SpecError(f"env: expected less than {_MAX_TEXT} bytes for one variable, got more for {name}")
    for name in options.labels:
        if not name or name.startswith(LABEL_PREFIX):
            raise SpecError(f"labels: expected a name that does not begin with {LABEL_PREFIX}, got {name!r}")
