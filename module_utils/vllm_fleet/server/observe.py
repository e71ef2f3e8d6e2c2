# SPDX-License-Identifier: Apache-2.0
"""Everything one run must know before it acts: options checked, Docker asked, differences found, actions planned."""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container import compare, fields, plan, spec
from ..container.compare import Difference
from ..container.engine import Engine
from ..container.fields import NodeFacts
from ..container.inspected import Inspected, ident, running
from ..container.plan import NEXT_SUFFIX, PREVIOUS_SUFFIX, Existing, Plan, Trust
from ..container.spec import LABEL_ASKED_UTILIZATION, Image, Spec, utilization_of, with_utilization
from ..diagnosis import flags as vllm_flags
from ..vllm import cli, readiness, releases
from ..vllm import ranks as node_ranks
from ..weights import layout
from . import endpoint
from .options import ServerOptions
from .state import NodeState

#: Seconds that an image may take to print its help; importing vLLM on a busy node takes about 30.
HELP_TIMEOUT = 180.0
#: What prints all flags of `vllm serve`; it imports nearly all that a start does.
ASK = "--help=all"
#: What does it before 0.11, which takes `all` for a word to look for, or refuses it.
ASK_OLD = "--help"
#: Flags that every `vllm serve` of the last two years has; an answer without them is not vLLM's help.
_WELL_KNOWN = frozenset({"max-model-len", "served-model-name", "host", "port"})

#: Returns the differences from another desired container, and the plan that removes them.
Judge = Callable[[Spec], tuple[list[Difference], Plan]]


@dataclass
class Observation:
    """What was found, and the plan that follows from it; ``judge`` plans for another container than ``spec``.

    ``left`` is the new container of a killed run; ``name_taken``: someone else has a container of that name.
    """

    name: str
    state: str
    current: Inspected | None
    previous: Inspected | None
    plan: Plan
    differences: list[Difference] = field(default_factory=list)
    current_trust: Trust = Trust.UNKNOWN
    spec: Spec | None = None
    image: Image | None = None
    notes: list[str] = field(default_factory=list)
    judge: Judge | None = None
    left: Inspected | None = None
    name_taken: bool = False

    @property
    def current_id(self) -> str | None:
        """Docker's id of the container that has the name now."""
        return ident(self.current) if self.current else None


def gather(options: ServerOptions, engine: Engine, node: NodeState, *, check_mode: bool) -> Observation:
    """Return what the options want, what the node has, and the plan. Changes nothing. Raises Refused, EngineError."""
    name, state = options.name, options.state
    current, previous = engine.container(name), engine.container(name + PREVIOUS_SUFFIX)
    next_ = engine.container(name + NEXT_SUFFIX)
    left = next_ if plan.left_over(next_, name) else None
    previous_trust = node.trust(ident(previous)) if previous else Trust.UNKNOWN
    if state == "restarted" and current and options.started_at not in ("", str(current["State"]["StartedAt"])):
        # Somebody was quicker: it is ended by nobody twice.
        return Observation(name, state, current, previous, Plan((), watch=True))
    if state != "started":
        trust = node.trust(ident(current)) if current else Trust.UNKNOWN
        trusts = (trust, previous_trust)
        return _without_spec(name, state, current, previous, trusts, restoring=node.restoring(), left=left)
    wanted, image, notes = desired(options, engine, node)
    damage = node.damage()
    if damage:
        notes.append(f"{damage.filename} cannot be read ({damage.strerror}), so no container is removed")
    redact = compare.fingerprint(node.fingerprint_key(create=not check_mode))
    own = engine.image(str(current["Image"])) if current and current["Image"] != image.id else image
    trust = _trust(current, node)

    def judge(candidate: Spec) -> tuple[list[Difference], Plan]:
        found = compare.differences(candidate, image, current, own, redact) if current else []
        existing = _existing(current, previous, (trust, previous_trust), remembered=damage is None)
        try:
            made = plan.make(state, found, *existing, left=left is not None)
        except plan.Unsure:
            raise unsure(name, damage) from None
        if current is None:
            found = [
                Difference(key, None, value)
                for key, value in sorted(compare.desired_fields(candidate, image, redact).items())
            ]
            found.insert(0, Difference("image", None, compare.describe_image(candidate.image, image.id)))
        if not (current and running(current) and not current["State"].get("Paused")):
            status = str(current["State"].get("Status")) if current else None
            found.append(Difference("state", status, "running"))
        if "stop_previous" in made.actions:
            found.append(Difference("previous", "running", "exited"))
        return [*found, *_left_over(made)], made

    lowered = _lowered_before(options, wanted, current)
    found, made = judge(lowered)
    if "create" in made.actions:
        found, made = judge(wanted)
    else:
        wanted = lowered
    return Observation(
        name,
        state,
        current,
        previous,
        made,
        found,
        current_trust=trust,
        spec=wanted,
        image=image,
        notes=notes,
        judge=judge,
        left=left,
        name_taken=next_ is not None and left is None,
    )


def _left_over(made: Plan) -> list[Difference]:
    return [Difference("next", "created", "absent")] if "remove_next" in made.actions else []


def _without_spec(
    name: str,
    state: str,
    current: Inspected | None,
    previous: Inspected | None,
    trusts: tuple[Trust, Trust],
    *,
    restoring: str | None,
    left: Inspected | None = None,
) -> Observation:
    """States that need no desired container: what is there decides. ``trusts`` of current and previous."""
    try:
        made = plan.make(state, [], *_existing(current, previous, trusts), restoring, left=left is not None)
    except plan.NothingToRestore:
        raise Refused(
            FailureClass.UNKNOWN,
            f"there is no container {name}{PREVIOUS_SUFFIX} to restore",
            "deploy a release that works (state: started); nothing was touched",
        ) from None
    except plan.NothingToRestart:
        raise Refused(
            FailureClass.UNKNOWN, f"there is no container {name} to restart", "deploy one first (state: started)"
        ) from None
    if state == "confirmed" and not running(current):
        raise Refused(
            FailureClass.UNKNOWN, f"there is no running container {name} to confirm", "start it first (state: started)"
        )
    found = []
    if made.actions:
        status = str(current["State"].get("Status")) if current else "absent"
        wanted = {"stopped": "exited", "absent": "absent", "restored": "running"}.get(state, state)
        if status != wanted and (current or state != "stopped"):  # where there is none, none will be
            found.append(Difference("state", status, wanted))
        if "remove_previous" in made.actions and previous:
            found.append(Difference("previous", str(previous["State"].get("Status")), "absent"))
        elif "stop_previous" in made.actions:
            found.append(Difference("previous", "running", "exited"))
        if state == "restored" and previous and current:
            found.append(Difference("container", str(current["Id"])[:12], str(previous["Id"])[:12]))
    found += _left_over(made)
    return Observation(name, state, current, previous, made, found, current_trust=trusts[0], left=left)


def desired(options: ServerOptions, engine: Engine, node: NodeState) -> tuple[Spec, Image, list[str]]:
    """Return the desired container, and notes on what could not be checked. Raises Refused."""
    ref = options.image
    with _wrong_option():
        spec.check_image_ref(ref, allow_latest=options.allow_latest)
        spec.check_model(options.model)
        spec.check_args(options)
    image = engine.image(ref)
    if image is None:
        raise Refused(
            FailureClass.IMAGE_MISSING,
            f"the image {ref} is not on this node",
            "pull, build or load it first (role vllm_image); nothing was touched",
        )
    notes: list[str] = []
    known = _known_flags(options, image, engine, node, notes)
    cache = str(node.engine_cache(image.id, options.model)) if options.engine_cache else None
    with _wrong_option():
        made = spec.build(
            options,
            image,
            node_facts(options),
            shutdown_timeout="shutdown-timeout" in known.flags,
            engine_cache=cache,
        )
    if made.network_mode not in ("bridge", "host", "none") and not engine.network_exists(made.network_mode):
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"network_mode: there is no Docker network {made.network_mode} on this node",
            "create it (docker network create), or use host or bridge",
        )
    return made, image, notes


@contextlib.contextmanager
def _wrong_option() -> Iterator[None]:
    """Refuse what the desired container cannot be made of."""
    try:
        yield
    except fields.SpecError as exc:
        remedy = "correct that option and run again; nothing was touched"
        raise Refused(FailureClass.BAD_ARGUMENT, str(exc), remedy) from None


def _known_flags(options: ServerOptions, image: Image, engine: Engine, node: NodeState, notes: list[str]) -> cli.Known:
    """Return what the image's server knows, asked once; refuse flags and values that it does not take.

    The answer is kept under the image's id. An image that cannot answer (no ``vllm`` on its PATH, help that needs a
    GPU) is not held against anyone: the flags are then not checked, and a note says so.
    """
    known = node.flags(image.id)
    if known is None:
        known = _asked(options, image, engine, node)
    if not known.flags:
        _by_tag(options, image)
        notes.append(f"the flags in args were not checked: {image.ref} did not print vLLM's help")
        return known
    unknown = cli.unknown_flags(options.flags, known.flags)
    if unknown:
        why, step = _unknown(unknown, known, image, _release(options, engine, image, unknown))
        raise Refused(FailureClass.BAD_ARGUMENT, why, f"{step} (vllm_server_args); nothing was touched")
    wrong = cli.wrong_values(options.flags, known)
    if wrong:
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"args: {'; '.join(wrong)}",
            f"the vLLM in {image.ref} says so in its help; correct vllm_server_args and run again; nothing was touched",
        )
    _values(options, image, lambda since: releases.too_old(known.flags, since))
    return known


def help_of(options: ServerOptions, image: Image) -> tuple[list[str], tuple[str, ...]]:
    """Return the program that knows the image's flags, and the devices that it may want to see."""
    entrypoint = cli.entrypoint_for(image.entrypoint, node_ranks.behind_guard(options.entrypoint))
    return entrypoint, tuple(d for d in fields.ROCM_DEVICES if Path(d).exists())


def _by_tag(options: ServerOptions, image: Image) -> None:
    """Refuse what an image that does not answer has not, by its tag: not yet, or no longer."""
    tag = "" if "@" in image.ref else image.ref.rpartition("/")[2].partition(":")[2]
    unknown = [flag for flag, value in options.flags.items() if value is not None and _lacks(tag, flag)]
    if unknown:
        why, step = _unknown(unknown, cli.Known(), image, tag)
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            why,
            f"{step} (vllm_server_args); nothing was touched. The image does not print its help, so this is by its tag",
        )
    _values(options, image, lambda since: releases.older(tag, since))


def _lacks(tag: str, flag: str) -> bool:
    """Say whether a release has a flag not yet, or no longer; False where its tag names no release."""
    gone = vllm_flags.removed(flag)
    if gone and gone.release and releases.version_of(tag) and not releases.older(tag, gone.release):
        return True
    return bool(releases.newer_flags({flag}, tag))


def _values(options: ServerOptions, image: Image, too_old: Callable[[str], bool]) -> None:
    """Refuse values of the environment that the image's vLLM is too old for."""
    for name, value, since in releases.newer_values(options.env, too_old):
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"env: the vLLM in {image.ref} is too old for {name}: {value} (since {since})",
            "set another value in vllm_server_env, or take a newer image (vllm_image_tag); nothing was touched",
        )


def _asked(options: ServerOptions, image: Image, engine: Engine, node: NodeState) -> cli.Known:
    """Return what the image's help says, and keep it; nothing where it says nothing of use."""
    entrypoint, devices = help_of(options, image)
    for word in (ASK, ASK_OLD):
        ran = engine.run_once(image, [*entrypoint, word], timeout=HELP_TIMEOUT, devices=devices)
        if ran.code is None:  # not in time, which another time it may be
            return cli.Known()
        known = cli.read_help(ran.output if ran.code == 0 else "")
        if known.flags >= _WELL_KNOWN:
            break
        known = cli.Known()
    with contextlib.suppress(OSError):  # an unwritable state folder costs the next run the question again
        node.note_flags(image.id, known)
    return known


def ask(known: cli.Known) -> str:
    """Return the word with which the image that has these flags prints all of them."""
    return ASK_OLD if releases.too_old(known.flags, releases.HELP_ALL_SINCE) else ASK


def _release(options: ServerOptions, engine: Engine, image: Image, unknown: list[str]) -> str:
    """Return the vLLM release in an image as it says itself; empty where it does not, or no flag depends on it."""
    entrypoint, devices = help_of(options, image)
    if entrypoint[-1:] != ["serve"] or not any(_came(flag) or vllm_flags.removed(flag) for flag in unknown):
        return ""
    ran = engine.run_once(image, [*entrypoint[:-1], "--version"], timeout=HELP_TIMEOUT, devices=devices)
    words = ran.output.split() if ran.code == 0 else []
    return next((word for word in reversed(words) if releases.version_of(word)), "").partition("+")[0]


def _came(flag: str) -> str:
    """Return the first release with a flag; empty where it is not known."""
    return releases.SINCE.get(flag.partition(".")[0].removeprefix("no-"), "")


def _unknown(unknown: list[str], known: cli.Known, image: Image, release: str) -> tuple[str, str]:
    """Say of flags that the image does not know since or until when vLLM has them, and what to write instead."""
    said = []
    steps = []
    for flag in unknown:
        came, gone = _came(flag), vllm_flags.removed(flag)
        if came and (releases.older(release, came) if release else releases.too_old(known.flags, came)):
            said.append(f"--{flag} (since {came})")
            steps.append(f"leave {flag} out, or take an image of vLLM {came} or newer")
        elif gone and gone.release:
            said.append(f"--{flag} (gone since {gone.release})")
        else:
            said.append(f"--{flag}")
    names = ", ".join(said)
    if names == ", ".join(f"--{flag}" for flag in unknown):
        return f"args: {names} is not a flag of the vLLM in {image.ref}", _hint(unknown[0], known)
    which = f"vLLM {release} ({image.ref})" if release else f"the vLLM in {image.ref}"
    return f"args: {which} has no {names}", steps[0] if steps else _hint(unknown[0], known)


def _hint(flag: str, known: cli.Known) -> str:
    """Say what to write instead of an unknown flag: what replaced it, or of which flag it is a misspelling."""
    on = flag.removeprefix("no-")
    if on in known.flags:
        return f"leave {on} out (null), for there is no way to say no to it"
    if gone := vllm_flags.removed(flag):
        return gone.instead
    near = vllm_flags.meant(flag, sorted(known.flags))
    return f"did you mean --{near}?" if near else "see `vllm serve --help=all`"


def node_facts(options: ServerOptions) -> NodeFacts:
    """Return what the spec needs of the node: groups' numeric ids, and where the hub really is."""
    gids: set[int] = set()
    groups: dict[str, int] = {}
    for name in options.groups or ():
        with contextlib.suppress(KeyError):
            groups[name] = grp.getgrnam(name).gr_gid
    if options.rocm:
        for group in ("video", "render"):
            with contextlib.suppress(KeyError):
                gids.add(grp.getgrnam(group).gr_gid)
        for device in (Path("/dev/kfd"), *Path("/dev/dri").glob("renderD*")):
            with contextlib.suppress(OSError):
                gids.add(device.stat().st_gid)
        gids.discard(0)  # root's group is the container's own
    target = None
    if options.hf_cache:
        hub = Path(options.hf_cache) / "hub"
        if hub.is_symlink():
            target = os.path.realpath(hub)
    return NodeFacts(tuple(sorted(gids)), target, groups)


def bare(name: str, current: Inspected) -> Observation:
    """Return an observation of any container that is only to be started."""
    return Observation(name, "restored", current, None, Plan((), watch=True))


def _existing(
    current: Inspected | None, previous: Inspected | None, trusts: tuple[Trust, Trust], *, remembered: bool = True
) -> tuple[Existing | None, Existing | None]:
    return (
        Existing.of(current, trusts[0], remembered=remembered) if current else None,
        Existing.of(previous, trusts[1], remembered=remembered) if previous else None,
    )


def unsure(name: str, damage: OSError | None) -> Refused:
    """Return why a server is not replaced: it has two containers, and it is not known which is the good one."""
    path, why = (damage.filename, damage.strerror) if damage else ("the node's memory", "is damaged")
    return Refused(
        FailureClass.UNKNOWN,
        f"{path} cannot be read ({why}), so it is not known which of {name} and {name}{PREVIOUS_SUFFIX} is the better "
        "one; both stay and nothing was touched",
        f"deploy what {name} is now once more (a right answer makes it the better one), or remove the one that is not "
        f"needed by `docker rm` and move {path} away; then run again",
    )


def _trust(current: Inspected | None, node: NodeState) -> Trust:
    """How good the container is. One that serves right now has proved itself, even if made by hand."""
    if current is None:
        return Trust.UNKNOWN
    noted = node.trust(ident(current))
    if noted > Trust.UNKNOWN or not running(current):
        return noted
    where = endpoint.of_container(current)
    return Trust.READY if where and readiness.ask(where, timeout=2.0).ready else noted


def suggest_model(model: str, cache: str | None) -> str:
    """Return models in the cache that may have been meant; empty when none is near."""
    if not cache or model.startswith("/"):
        return ""
    near = layout.nearest(model, layout.known_repos(Path(cache)))
    return f"; in the cache there is {', '.join(near)}" if near else ""


def _lowered_before(options: ServerOptions, made: Spec, container: Inspected | None) -> Spec:
    """Return the desired container with the share that policy ``fit`` lowered it to, where ``container`` is the result.

    It stays with that share until something else is asked for: a server is not restarted because memory came free.
    """
    if not options.rocm or options.gpu_memory_policy != "fit" or container is None:
        return made
    config = container.get("Config") or {}
    if (config.get("Labels") or {}).get(LABEL_ASKED_UTILIZATION) != utilization_of(made.command):
        return made
    has = utilization_of(config.get("Cmd") or [])
    return made if has in ("default", utilization_of(made.command)) else with_utilization(made, float(has))
