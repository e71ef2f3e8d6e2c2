# SPDX-License-Identifier: Apache-2.0
"""The desired container against the one Docker has: named differences. Pure.

Both sides are flattened to the same fields, with what the images contribute left out, and compared field by field.
Everything that is shown (``differences``, ``diff``) comes from here, so secrets are replaced here by a fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common import secrets
from ..common.secrets import is_hidden, is_secret
from ..vllm import cli
from .fields import capability_names, device, parse_numbers, security_options
from .inspected import cpuset
from .mounts import ENGINE_CACHE, HF_HOME, normal_path, parse_volume, volume
from .options import canonical_address
from .spec import LABEL_GPUS, LABEL_IMAGE_ID, LABEL_PREFIX, OMP_BIND, VISIBLE, Image, Spec

Fields = dict[str, object]
Redact = Callable[[str], str]

#: What stands for a secret, before its fingerprint.
FINGERPRINT = "secret, fingerprint"

#: Docker's own values for what is not set (docker 20.10 to 29 daemon defaults).
DEFAULT_SHM_SIZE = 64 << 20
DEFAULT_STOP_TIMEOUT = 10

#: Fields that Docker can change on a container that keeps running (`docker update`).
UPDATABLE = frozenset({"restart_policy"})

#: Flags whose values are fractions: 0.90 is 0.9. Of others a text such as 1.10 may be a version.
_FRACTIONS = frozenset({"gpu-memory-utilization", "cpu-offload-gb", "swap-space"})


@dataclass(frozen=True)
class Difference:
    """One field that is not as desired. ``None`` means absent."""

    name: str
    current: object
    desired: object

    def as_dict(self) -> dict[str, object]:
        """Return it the shape of the module's result."""
        return {"name": self.name, "current": self.current, "desired": self.desired}


def fingerprint(key: bytes) -> Redact:
    """Return the function that shows a secret: a keyed digest changes with the secret and gives nothing of it away."""

    def redact(value: str) -> str:
        digest = hmac.new(key, value.encode(), hashlib.sha256).hexdigest()
        return f"({FINGERPRINT} {digest[:12]})"

    return redact


def differences(
    spec: Spec, image: Image, container: Mapping[str, object], own_image: Image | None, redact: Redact
) -> list[Difference]:
    """Compare ``spec`` (to be run from ``image``) with an inspected ``container`` (made from ``own_image``).

    ``container`` is Docker's inspect JSON. ``own_image`` is None when that image is gone from the node; nothing is
    then left out of the container's settings, and its identity comes from the note made at its creation.
    """
    want, have = desired_fields(spec, image, redact), current_fields(container, own_image, redact)
    found = [
        Difference(name, have.get(name), want.get(name))
        for name in sorted(want.keys() | have.keys())
        if have.get(name) != want.get(name)
    ]
    image_difference = _image(spec, image, container)
    return ([image_difference] if image_difference else []) + found


def desired_fields(spec: Spec, image: Image, redact: Redact) -> Fields:
    """Flatten the desired container."""
    fields: Fields = {
        "entrypoint": list(spec.entrypoint),
        "ipc_mode": _ipc(spec.ipc_mode),
        "network_mode": spec.network_mode,
        "restart_policy": spec.restart_policy,
        "stop_timeout": spec.stop_timeout,
        "volumes": _sorted(_volume(str(v)) for v in spec.volumes),
        "devices": list(spec.devices),
        "groups": list(spec.groups),
        "capabilities": list(spec.capabilities),
        "security_opts": _security(spec.security_opts, _ipc(spec.ipc_mode)),
        "ulimits": _sorted(f"{u.name}={u.soft}:{u.hard}" for u in spec.ulimits),
        "ports": _sorted(f"{host}->{inner}" for inner, host in spec.ports.items()),
        "shm_size": None if spec.ipc_mode == "host" else (spec.shm_size or DEFAULT_SHM_SIZE),
        "cpuset": spec.cpuset,
    }
    fields |= _command_fields(spec.command, redact)
    fields |= _named("env", _own(spec.env, image.env), redact)
    fields |= _named("labels", _own(spec.labels, image.labels), redact)
    return {k: v for k, v in fields.items() if v not in (None, [])}


def current_fields(container: Mapping[str, object], own_image: Image | None, redact: Redact) -> Fields:
    """Flatten what Docker has, with the same names."""
    config, host = _dict(container.get("Config")), _dict(container.get("HostConfig"))
    image_env = own_image.env if own_image else {}
    image_labels = own_image.labels if own_image else {}
    entry, words = _entrypoint_and_words(config)
    labels = {k: v for k, v in _dict(config.get("Labels")).items() if not str(k).startswith(LABEL_PREFIX)}
    ipc = _ipc(str(host.get("IpcMode") or ""))
    shm = host.get("ShmSize") or DEFAULT_SHM_SIZE
    restart = _dict(host.get("RestartPolicy"))
    policy = str(restart.get("Name") or "no")
    retries = restart.get("MaximumRetryCount") or 0
    fields: Fields = {
        "entrypoint": entry,
        "ipc_mode": ipc,
        "network_mode": {"default": "bridge", "": "bridge"}.get(
            str(host.get("NetworkMode") or ""), host.get("NetworkMode")
        ),
        "restart_policy": f"{policy}:{retries}" if retries else policy,
        "stop_timeout": DEFAULT_STOP_TIMEOUT if config.get("StopTimeout") is None else config["StopTimeout"],
        "volumes": _sorted(_volume(v) for v in _list(host.get("Binds"))),
        "devices": _sorted({_device(_dict(d)) for d in _list(host.get("Devices"))}),
        "groups": _sorted({str(g) for g in _list(host.get("GroupAdd"))}),
        "capabilities": capability_names(_list(host.get("CapAdd"))),
        "security_opts": _security(_list(host.get("SecurityOpt")), ipc),
        "ulimits": _sorted(f"{u['Name']}={u['Soft']}:{u['Hard']}" for u in map(_dict, _list(host.get("Ulimits")))),
        "ports": _ports(_dict(host.get("PortBindings"))),
        "shm_size": None if ipc == "host" else shm,
        "cpuset": cpuset(container),
        "privileged": True if host.get("Privileged") else None,
    }
    fields |= _command_fields(words, redact)
    fields |= _named("env", _own(_env(config.get("Env")), image_env), redact)
    fields |= _named("labels", _own({str(k): str(v) for k, v in labels.items()}, image_labels), redact)
    return {k: v for k, v in fields.items() if v not in (None, [])}


def as_spec(container: Mapping[str, object], own_image: Image | None, redact: Redact) -> dict[str, object]:
    """Describe an inspected container by the module's options: given back, they make the same container again.

    Secrets are fingerprints here, named in ``secrets``; to use the options again takes the values.
    """
    fields = current_fields(container, own_image, redact)
    named: dict[str, dict[str, object]] = {"args": {}, "env": {}, "labels": {}}
    for name, value in fields.items():
        head, dot, tail = name.partition(".")
        if dot:
            named[head][tail] = value
    shared = _shared(container, named["env"])
    args = named["args"]
    revision = args.pop("revision", None)
    ports = [str(p).partition("->")[0] for p in _list(fields.get("ports"))]
    bind, _, port = ports[0].rpartition(":") if ports else ("", "", "")
    inner, host = args.pop("port", None), args.pop("host", None)
    mounts = [parse_volume(v) for v in map(str, _list(fields.get("volumes")))]
    return {
        "image": str(_dict(container.get("Config")).get("Image")),
        "image_id": container.get("Image"),
        "model": fields.get("model"),
        "revision": revision,
        **_without_secrets(named),
        "entrypoint": fields.get("entrypoint", []),
        "bind": bind or host,
        "port": int(port) if port else inner,
        "hf_cache": next((m.source for m in mounts if m.target == HF_HOME), None),
        "engine_cache": any(m.target == ENGINE_CACHE for m in mounts),
        "volumes": [str(m) for m in mounts if m.target not in (HF_HOME, ENGINE_CACHE)],
        **{name: fields.get(name, []) for name in ("devices", "groups", "capabilities", "security_opts", "ulimits")},
        **{name: fields.get(name) for name in ("ipc_mode", "shm_size", "network_mode", "restart_policy")},
        "stop_timeout": fields["stop_timeout"],
        **shared,
    }


def _shared(container: Mapping[str, object], env: dict[str, object]) -> dict[str, object]:
    """Return as options what a server was given of a node that it shares, nothing for one that has the whole node.

    The devices and variables that follow from it are left out, of ``env``, too.
    """
    found: dict[str, object] = {}
    label = _dict(_dict(container.get("Config")).get("Labels")).get(LABEL_GPUS)
    if label:
        found |= {"gpus": [int(one) for one in str(label).split(",")], "devices": None}
        env.pop(VISIBLE, None)
    cpus = cpuset(container)
    if cpus is not None:
        found["cpus"] = list(parse_numbers(cpus, "cpuset"))
        if str(env.get(OMP_BIND, ""))[:1].isdigit():
            del env[OMP_BIND]
    return found


def as_diff(found: Sequence[Difference], name: str) -> dict[str, object]:
    """Turn differences into Ansible's ``diff``: only what differs, dotted names as nested keys."""
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    for item in found:
        _put(before, item.name, item.current)
        _put(after, item.name, item.desired)
    return {"before_header": f"{name} (running)", "after_header": f"{name} (wanted)", "before": before, "after": after}


def _put(tree: dict[str, object], name: str, value: object) -> None:
    head, dot, tail = name.partition(".")
    if not dot:
        if value is not None:
            tree[head] = value
        return
    if value is not None:
        branch = tree.setdefault(head, {})
        assert isinstance(branch, dict)  # noqa: S101  fields named x and x.y never exist together
        branch[tail] = value


def _image(spec: Spec, image: Image, container: Mapping[str, object]) -> Difference | None:
    """Judge the image by its bytes, not by its name.

    Docker's two image stores name the same image by different digests (classic: the configuration's, containerd: the
    manifest's or the index's), and a container may carry either; so any match of any of them is a match.
    """
    config = _dict(container.get("Config"))
    descriptor = _dict(container.get("ImageManifestDescriptor"))
    noted = _dict(config.get("Labels")).get(LABEL_IMAGE_ID)
    have = {str(d) for d in (container.get("Image"), descriptor.get("digest"), noted) if d}
    if have & (image.ids | {image.id}):
        return None
    name, digest = str(config.get("Image")), str(container.get("Image") or noted)
    return Difference("image", describe_image(name, digest), describe_image(spec.image, image.id))


def describe_image(ref: str, digest: str) -> str:
    """Show an image as its name with the start of its id; by its id alone when that is the name."""
    short = digest.removeprefix("sha256:")[:12]
    return short if ref.startswith("sha256:") else f"{ref} ({short})"


def _entrypoint_and_words(config: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """Read a container's command line, wherever its author drew the line between entrypoint and CMD.

    ``--entrypoint vllm IMAGE serve M``, ``IMAGE vllm serve M`` and an entrypoint ``vllm serve`` all run the same.
    """
    entry = [str(w) for w in _list(config.get("Entrypoint"))]
    words = [str(w) for w in _list(config.get("Cmd"))]
    head, tail = cli.split_entrypoint([*entry, *words])
    return (head, tail) if len(head) >= len(entry) and head else (entry, words)


def _command_fields(words: Sequence[str], redact: Redact) -> Fields:
    parsed = cli.parse(words)
    # Somebody else's secrets on a command line are in every process list, and must not be in a diff too.
    fields: Fields = {f"args.{k}": _shown(k, v, _plain(k, v), redact) for k, v in parsed.flags.items()}
    if parsed.model is not None:
        fields["model"] = parsed.model
    if parsed.rest:
        fields["command"] = secrets.command(parsed.rest)
    return fields


def _shown(name: str, value: object, plain: object, redact: Redact) -> object:
    """Return ``plain``, or in the place of a secret its fingerprint: of one by its shape, what is around it stays."""
    if not is_hidden(name, value):
        return plain
    mark = redact(str(value))
    return mark if is_secret(name) else f"{secrets.scrub(str(value))} {mark}"


def hide(spec: Mapping[str, Any], redact: Redact) -> dict[str, Any]:
    """Return a spec of ``as_spec`` that an older version made, with fingerprints for what counts as a secret today."""
    named = {
        group: {k: v if FINGERPRINT in str(v) else _shown(k, v, v, redact) for k, v in (spec.get(group) or {}).items()}
        for group in ("args", "env", "labels")
    }
    return {**spec, **_without_secrets(named, spec.get("secrets") or ())}


def _without_secrets(named: Mapping[str, Mapping[str, object]], known: Sequence[str] = ()) -> dict[str, object]:
    """Return arguments, environment and labels as options, and the names of the secrets, ``known`` ones among them."""
    args = {flag: value for flag, value in named["args"].items() if FINGERPRINT not in str(value)}
    env = {name for name, value in named["env"].items() if FINGERPRINT in str(value)}
    hidden = {*known, *env, *(f"args.{flag}" for flag in named["args"] if flag not in args)}
    return {**named, "args": args, "secrets": sorted(hidden)}


def _plain(flag: str, value: object) -> object:
    """Show numbers as numbers (a YAML reader then sees 512 and not '512'), and equal values in one way."""
    if not isinstance(value, str):
        return value
    if flag == "host":
        return canonical_address(value)
    if flag in _FRACTIONS and re.fullmatch(r"\d*\.?\d+", value):
        value = f"{float(value):g}"
    if re.fullmatch(r"-?(0|[1-9]\d{0,14})", value):
        return int(value)
    if value.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.dumps(json.loads(value), sort_keys=True, separators=(",", ":"))
    return value


def _own(values: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in values.items() if inherited.get(k) != v}


def _named(prefix: str, values: Mapping[str, str], redact: Redact) -> Fields:
    return {f"{prefix}.{k}": _shown(k, v, v, redact) for k, v in values.items()}


def _env(value: object) -> dict[str, str]:
    out = {}
    for item in _list(value):
        key, _, text = str(item).partition("=")
        out[key] = text
    return out


def _volume(text: object) -> str:
    parts = str(text).split(":")
    if len(parts) not in (2, 3):
        return str(text)
    source, target = parts[:2]
    if normal_path(target) == ENGINE_CACHE:
        # The engine's cache has a folder for each image and model: another one is no difference of its own, it
        # follows from the image's or the model's, which is named.
        source = source.rpartition("/")[0] + "/*"
    return str(volume(source, target, parts[2] if len(parts) == 3 else "rw"))


def _device(entry: Mapping[str, object]) -> str:
    source = str(entry.get("PathOnHost"))
    return device(source, str(entry.get("PathInContainer") or source), str(entry.get("CgroupPermissions") or "rwm"))


def _ports(bindings: Mapping[str, object]) -> list[str]:
    out = []
    for inner, hosts in bindings.items():
        for host in map(_dict, _list(hosts)):
            address = canonical_address(str(host.get("HostIp") or "0.0.0.0"))  # noqa: S104  read, not bound
            out.append(f"{address}:{host.get('HostPort')}->{inner}")
    return sorted(out)


def _security(options: Sequence[object], ipc: str) -> list[str]:
    words = set(security_options(options))
    # Docker itself adds this where a container shares the host's IPC and nothing was said of labels.
    return sorted(words - {"label=disable"} if ipc == "host" else words)


def _ipc(mode: str | None) -> str:
    # What the daemon writes where it is not set depends on its default-ipc-mode; both are the container's own.
    return "private" if mode in (None, "", "shareable") else str(mode)


def _sorted(items: object) -> list[str]:
    return sorted(items)  # type: ignore[call-overload, no-any-return]


def _dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else []
