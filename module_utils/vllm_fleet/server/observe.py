"""Everything one run must know before it acts: options checked, Docker asked, differences found, actions planned."""

from __future__ import annotations

import contextlib
import difflib
import grp
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container import compare, plan, spec
from ..container.engine import Engine
from ..container.plan import PREVIOUS_SUFFIX, Existing, Plan, Rank
from ..container.spec import Image, NodeFacts, Spec
from ..vllm import cli, readiness
from ..vllm import ranks as node_ranks
from ..weights import layout
from . import gpu_gate
from .endpoint import endpoint_of
from .state import NodeState

#: Seconds that an image may take to print its help; importing vLLM on a busy node takes about 30.
HELP_TIMEOUT = 180.0
#: Flags that every `vllm serve` of the last two years has; an answer without them is not vLLM's help.
_WELL_KNOWN = frozenset({"max-model-len", "served-model-name", "host", "port"})


@dataclass
class Survey:
    """What was found and what is to be done."""

    name: str
    state: str
    spec: Spec | None
    image: Image | None
    current: Mapping[str, Any] | None
    previous: Mapping[str, Any] | None
    current_rank: Rank
    previous_rank: Rank
    differences: list[compare.Difference]
    plan: Plan
    notes: list[str] = field(default_factory=list)
    #: Gives differences and plan for another desired container than ``spec``.
    judge: Callable[[Spec], tuple[list[compare.Difference], Plan]] | None = None

    @property
    def current_id(self) -> str | None:
        """Docker's id of the container that has the name now."""
        return str(self.current["Id"]) if self.current else None


def survey(options: Mapping[str, Any], engine: Engine, node: NodeState, *, check_mode: bool) -> Survey:
    """Look at options and node, plan. Changes nothing. Raises Refused for what cannot work."""
    name, state = str(options["name"]), str(options["state"])
    current, previous = engine.container(name), engine.container(name + PREVIOUS_SUFFIX)
    previous_rank = node.rank(str(previous["Id"])) if previous else Rank.UNKNOWN
    if state != "started":
        rank = node.rank(str(current["Id"])) if current else Rank.UNKNOWN
        return _without_spec(name, state, current, previous, (rank, previous_rank), restoring=node.restoring())
    wanted, image, notes = desired(options, engine, node)
    redact = compare.fingerprint(node.fingerprint_key(create=not check_mode))
    own = engine.image(str(current["Image"])) if current and current["Image"] != image.id else image
    rank = _rank(current, node, options)

    def judge(candidate: Spec) -> tuple[list[compare.Difference], Plan]:
        found = compare.differences(candidate, image, current, own, redact) if current else []
        made = plan.make(state, found, _existing(current, rank), _existing(previous, previous_rank))
        if current is None:
            found = [
                compare.Difference(key, None, value)
                for key, value in sorted(compare.desired_fields(candidate, image, redact).items())
            ]
            found.insert(0, compare.Difference("image", None, compare.describe_image(candidate.image, image.id)))
        if not (current and current["State"].get("Running") and not current["State"].get("Paused")):
            status = str(current["State"].get("Status")) if current else None
            found.append(compare.Difference("state", status, "running"))
        if "stop_previous" in made.actions:
            found.append(compare.Difference("previous", "running", "exited"))
        return found, made

    lowered = gpu_gate.lowered_before(options, wanted, current)
    found, made = judge(lowered)
    if "create" in made.actions:
        found, made = judge(wanted)
    else:
        wanted = lowered
    return Survey(name, state, wanted, image, current, previous, rank, previous_rank, found, made, notes, judge)


def _without_spec(
    name: str,
    state: str,
    current: Mapping[str, Any] | None,
    previous: Mapping[str, Any] | None,
    ranks: tuple[Rank, Rank],
    *,
    restoring: str | None,
) -> Survey:
    """States that need no desired container: what is there decides. ``ranks`` of current and previous."""
    rank, previous_rank = ranks
    try:
        made = plan.make(state, [], _existing(current, rank), _existing(previous, previous_rank), restoring)
    except plan.NothingToRestore:
        raise Refused(
            FailureClass.UNKNOWN,
            f"there is no container {name}{PREVIOUS_SUFFIX} to restore",
            "deploy a release that works (state: started); nothing was touched",
        ) from None
    if state == "confirmed" and not (current and current["State"].get("Running")):
        raise Refused(
            FailureClass.UNKNOWN, f"there is no running container {name} to confirm", "start it first (state: started)"
        )
    found = []
    if made.actions:
        status = str(current["State"].get("Status")) if current else "absent"
        wanted = {"stopped": "exited", "absent": "absent", "restored": "running"}[state]
        if status != wanted and (current or state != "stopped"):  # where there is none, none will be
            found.append(compare.Difference("state", status, wanted))
        if "remove_previous" in made.actions and previous:
            found.append(compare.Difference("previous", str(previous["State"].get("Status")), "absent"))
        elif "stop_previous" in made.actions:
            found.append(compare.Difference("previous", "running", "exited"))
        if state == "restored" and previous and current:
            found.append(compare.Difference("container", str(current["Id"])[:12], str(previous["Id"])[:12]))
    return Survey(name, state, None, None, current, previous, rank, previous_rank, found, made)


def desired(options: Mapping[str, Any], engine: Engine, node: NodeState) -> tuple[Spec, Image, list[str]]:
    """Build the desired container, and notes on what could not be checked. Raises Refused."""
    ref = str(options["image"])
    try:
        spec.check_image_ref(ref, allow_latest=bool(options.get("allow_latest")))
        spec.check_model(str(options["model"]))
        cli.normalise_args(options.get("args") or {})
    except (spec.SpecError, cli.CommandError) as exc:
        raise Refused(
            FailureClass.BAD_ARGUMENT, str(exc), "correct that option and run again; nothing was touched"
        ) from None
    image = engine.image(ref)
    if image is None:
        raise Refused(
            FailureClass.IMAGE_MISSING,
            f"the image {ref} is not on this node",
            "pull, build or load it first (role vllm_image); nothing was touched",
        )
    notes: list[str] = []
    known = _known_flags(options, image, engine, node, notes)
    cache = options.get("engine_cache", True) and str(node.engine_cache(image.id, str(options["model"])))
    full = {**options, "engine_cache": cache or None}
    try:
        made = spec.build(full, image, node_facts(options), shutdown_timeout="shutdown-timeout" in known)
    except (spec.SpecError, cli.CommandError) as exc:
        raise Refused(
            FailureClass.BAD_ARGUMENT, str(exc), "correct that option and run again; nothing was touched"
        ) from None
    if made.network_mode not in ("bridge", "host", "none") and not engine.network_exists(made.network_mode):
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"network_mode: there is no Docker network {made.network_mode} on this node",
            "create it (docker network create), or use host or bridge",
        )
    return made, image, notes


def _known_flags(
    options: Mapping[str, Any], image: Image, engine: Engine, node: NodeState, notes: list[str]
) -> frozenset[str]:
    """Ask the image once which flags its server knows, and refuse the ones it does not.

    The answer is kept under the image's id. An image that cannot answer (no ``vllm`` on its PATH, help that needs a
    GPU) is not held against anyone: the flags are then not checked, and a note says so.
    """
    known = node.flags(image.id)
    entrypoint = cli.entrypoint_for(image.entrypoint, node_ranks.behind_guard(options.get("entrypoint")))
    if known is None:
        devices = tuple(d for d in spec.ROCM_DEVICES if Path(d).exists())
        text = engine.run_once(image, [*entrypoint, "--help=all"], timeout=HELP_TIMEOUT, devices=devices)
        known = cli.flags_in_help(text or "")
        if not known >= _WELL_KNOWN:
            known = frozenset()
        if text is not None:  # None: not in time, which another time it may be
            with contextlib.suppress(OSError):  # an unwritable state folder costs the next run the question again
                node.note_flags(image.id, known)
    if not known:
        notes.append(f"the flags in args were not checked: {image.ref} did not print vLLM's help")
        return known
    unknown = cli.unknown_flags(options.get("args") or {}, known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=3, cutoff=0.6)
        hint = f"did you mean {', '.join('--' + n for n in near)}?" if near else "see `vllm serve --help=all`"
        on = unknown[0].removeprefix("no-")
        if on in known:
            hint = f"leave {on} out (null), for there is no way to say no to it"
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"args: {', '.join('--' + u for u in unknown)} is not a flag of the vLLM in {image.ref}",
            f"{hint} (vllm_server_args); nothing was touched",
        )
    return known


def node_facts(options: Mapping[str, Any]) -> NodeFacts:
    """Read what the spec needs of the node: groups' numeric ids, and where the hub really is."""
    gids: set[int] = set()
    groups: dict[str, int] = {}
    for name in map(str, options.get("groups") or []):
        with contextlib.suppress(KeyError):
            groups[name] = grp.getgrnam(name).gr_gid
    if options["accelerator"] == "rocm":
        for group in ("video", "render"):
            with contextlib.suppress(KeyError):
                gids.add(grp.getgrnam(group).gr_gid)
        for device in (Path("/dev/kfd"), *Path("/dev/dri").glob("renderD*")):
            with contextlib.suppress(OSError):
                gids.add(device.stat().st_gid)
        gids.discard(0)  # root's group is the container's own
    target = None
    if options.get("hf_cache"):
        hub = Path(str(options["hf_cache"])) / "hub"
        if hub.is_symlink():
            target = os.path.realpath(hub)
    return NodeFacts(tuple(sorted(gids)), target, groups)


def bare(name: str, current: Mapping[str, Any]) -> Survey:
    """A survey of a container that is only to be started, whoever made it."""
    unknown, nothing = Rank.UNKNOWN, Plan((), watch=True)
    return Survey(name, "restored", None, None, current, None, unknown, unknown, [], nothing)


def _existing(container: Mapping[str, Any] | None, rank: Rank) -> Existing | None:
    if container is None:
        return None
    state = container["State"]
    return Existing(str(container["Id"]), bool(state.get("Running")), rank, bool(state.get("Paused")))


def _rank(current: Mapping[str, Any] | None, node: NodeState, options: Mapping[str, Any]) -> Rank:
    """A container that serves right now has proved itself, whether or not this project ever saw it before."""
    if current is None:
        return Rank.UNKNOWN
    noted = node.rank(str(current["Id"]))
    if noted > Rank.UNKNOWN or not current["State"].get("Running"):
        return noted
    where = endpoint_of(current)
    return Rank.READY if where and readiness.ask(where, timeout=2.0).ready else noted


def suggest_model(model: str, cache: str | None) -> str:
    """Name models in the cache that may have been meant; empty when none is near."""
    if not cache or model.startswith("/"):
        return ""
    near = layout.nearest(model, layout.known_repos(Path(cache)))
    return f"; in the cache there is {', '.join(near)}" if near else ""
