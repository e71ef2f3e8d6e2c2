# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters that a server is to have: as an inventory says them, and as vLLM is told. Pure.

Sources: vLLM 0.32.0, entrypoints/openai (`--lora-modules NAME=PATH`, one word each), config/lora.py (ranks and their
defaults), lora/peft_helper.py (what of a file vLLM reads and refuses).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.finding import Finding
from ..common.secrets import kind
from . import cli

WHAT = "vllm_server_adapters"
MOST = 200
"""Adapters of a server that are believed."""

#: What `--max-lora-rank` may be, and what it is without the flag.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16
CONFIG = "adapter_config.json"

#: A name is a model's name for clients, and the part before `=` on the command line: no `=`, no comma, no space.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEYS = {"repo", "revision", "base", "verify", "list_digest"}
_ASKS = {"api", "messages", "prompt", "max_tokens", "temperature", "stream", "expect", "timeout"}


#: What a request asks, of which it has one.
_ASKED = ("prompt", "messages", "query", "documents")


class AdapterError(ValueError):
    """What an inventory says of adapters cannot be; the text is one sentence."""


@dataclass(frozen=True)
class Adapter:
    """One adapter: the name that clients ask for, its repository on the Hub, the commit, how it is verified."""

    name: str
    repo: str
    revision: str
    verify: Mapping[str, Any] = field(default_factory=dict)
    list_digest: str = ""
    base: str = ""  # the model that it was made for, where the user knows that the served one is as good

    def path(self, cache: str) -> str:
        """Return its folder below a cache (HF_HOME)."""
        return f"{cache}/hub/models--{self.repo.replace('/', '--')}/snapshots/{self.revision}"


def parse(given: object) -> list[Adapter]:
    """Return the adapters of the variable, sorted by name. Raises AdapterError."""
    if given in (None, "", {}, []):
        return []
    if not isinstance(given, Mapping):
        raise AdapterError(f"{WHAT} is {kind(given)}; expected {{name: {{repo: org/lora, revision: commit}}}}")
    if len(given) > MOST:
        raise AdapterError(f"{WHAT} has {len(given)} adapters; a server is given {MOST} at most")
    found = [_adapter(str(name), value) for name, value in given.items()]
    return sorted(found, key=lambda one: one.name)


def _adapter(name: str, value: object) -> Adapter:
    if not _NAME.fullmatch(name):
        raise AdapterError(
            f"{WHAT}: {name!r} is no name that clients can ask for; letters, digits and ._:/- are, without spaces"
        )
    if not isinstance(value, Mapping):
        raise AdapterError(f"{WHAT}: {name} is {kind(value)}; expected {{repo: org/lora, revision: commit}}")
    odd = sorted(map(str, value.keys() - _KEYS))
    if odd:
        raise AdapterError(f"{WHAT}: {name} has {', '.join(odd)}; known are {', '.join(sorted(_KEYS))}")
    repo, revision = str(value.get("repo") or ""), str(value.get("revision") or "")
    if not repo or repo.startswith(("/", "~")):
        raise AdapterError(f"{WHAT}: {name} has the repo {repo!r}; expected its id on the Hub, such as org/lora")
    if not _COMMIT.fullmatch(revision):
        raise AdapterError(
            f"{WHAT}: {name} has the revision {revision!r}; expected a commit, 40 hexadecimal digits, because a branch "
            "moves and replicas would serve different weights under one name (the Hub's page of its commits shows it)"
        )
    verify = value.get("verify") or {}
    if not isinstance(verify, Mapping) or verify.keys() - _ASKS:
        got = ", ".join(sorted(map(str, verify.keys() - _ASKS))) if isinstance(verify, Mapping) else kind(verify)
        raise AdapterError(f"{WHAT}: {name} has in verify {got}; known are {', '.join(sorted(_ASKS))}")
    texts = {key: str(value.get(key) or "") for key in ("list_digest", "base")}
    return Adapter(name, repo, revision, dict(verify), **texts)


def names(given: object) -> list[str]:
    """Return the names of the variable; none of one that cannot be, which is reported where it is judged."""
    try:
        return [one.name for one in parse(given)]
    except AdapterError:
        return []


def lay_over(args: Mapping[str, Any], adapters: Sequence[Adapter], cache: str) -> dict[str, Any]:
    """Return the server's arguments with the adapters, which lie in the container's ``cache`` (HF_HOME).

    A user's own ``lora-modules`` stay. What a user or preset says of ``max-loras`` counts; otherwise each adapter has
    room in a batch. Raises AdapterError for a name that is there already.
    """
    if not adapters:
        return dict(args)
    flags = {cli.flag_name(str(key)): key for key in args}
    own = args.get(flags.get("lora-modules", ""))
    listed = list(own) if isinstance(own, (list, tuple)) else [own] if own else []
    there = set(cli.adapter_names({"lora-modules": listed}))
    if twice := sorted(there & {one.name for one in adapters}):
        raise AdapterError(f"{', '.join(twice)} stands in {WHAT} and in lora-modules of vllm_server_args; keep one")
    words = [*listed, *(f"{one.name}={one.path(cache)}" for one in adapters)]
    made = {key: value for key, value in args.items() if cli.flag_name(str(key)) != "lora-modules"}
    made |= {"lora-modules": words}
    if "enable-lora" not in flags:
        made["enable-lora"] = True
    if "max-loras" not in flags:
        made["max-loras"] = len(words)
    return made


def paths(args: Mapping[str, Any]) -> dict[str, str]:
    """Return the folder of each adapter that a server's flags name as `NAME=PATH`, in its container."""
    flags = {cli.flag_name(str(key)): value for key, value in args.items()}
    listed = flags.get("lora-modules") or []
    words = [str(one).partition("=") for one in (listed if isinstance(listed, (list, tuple)) else [listed])]
    return {name: path for name, equals, path in words if equals and not name.lstrip().startswith("{")}


def requests(adapters: Sequence[Adapter], asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one request to each adapter: its own, else the first of ``asked`` (vllm_server_verify).

    What an adapter was trained to say is its own matter, so without a word of the user any answer will do.
    """
    first = dict(asked[0]) if asked else {"prompt": "Hello"}
    made = []
    for one in adapters:
        if "prompt" in one.verify or "messages" in one.verify:
            base = {key: value for key, value in first.items() if key not in _ASKED}
        else:
            base = dict(first)
        told = {**base, "max_tokens": 16, "expect": {}, **one.verify}
        made.append({**told, "name": f"adapter {one.name}", "model": one.name})
    return made


# --- what speaks against them


def judge(
    adapters: Sequence[Adapter], args: Mapping[str, Any], served: Sequence[str], *, cached: bool
) -> list[Finding]:
    """Return the findings on the inventory alone: names, and the flags that the adapters need.

    ``args`` are the server's own, with its preset's; ``served`` its names; ``cached``: it has a cache that the role
    hf_cache fills.
    """
    if not adapters:
        return []
    flags = {cli.flag_name(str(key)): value for key, value in args.items()}
    found = []
    if clash := sorted(set(served) & {one.name for one in adapters}):
        got, remedy = f"{', '.join(clash)}, a name of the model itself", "give the adapter another name"
        found.append(Finding("refused", WHAT, "names of their own", got, remedy))
    if not cached:
        remedy = "set hf_cache_path (vllm_server_hf_cache), where adapters are brought and mounted like weights"
        found.append(Finding("refused", WHAT, "a cache", "none", remedy))
    if flags.get("enable-lora") is False:
        remedy = "take enable-lora: false out of vllm_server_args"
        found.append(Finding("refused", WHAT, "--enable-lora", "enable-lora: false", remedy))
    rank = _number(flags.get("max-lora-rank", DEFAULT_RANK))
    if rank not in RANKS:
        remedy = f"set vllm_server_args: {{max-lora-rank: N}}, one of {', '.join(map(str, RANKS))}"
        found.append(Finding("refused", WHAT, "a rank that vLLM takes", str(flags.get("max-lora-rank")), remedy))
    room = _number(flags.get("max-loras", len(adapters)))
    if not room:
        remedy = "set it to the number of adapters, or to how many a batch shall hold"
        found.append(Finding("refused", WHAT, "max-loras of 1 or more", str(flags.get("max-loras")), remedy))
    held = _number(flags.get("max-cpu-loras"))
    if held is not None and held < (room or 0):
        remedy = f"set max-cpu-loras to {room} or more, or leave it out"
        found.append(Finding("refused", WHAT, f"max-cpu-loras of {room} or more", str(held), remedy))
    waits = f"; requests to more than {room} at a time wait" if room and room < len(adapters) else ""
    return found or [Finding("ok", WHAT, "adapters", ", ".join(one.name for one in adapters) + waits)]


def _number(value: object) -> int | None:
    return int(str(value)) if re.fullmatch(r"\d{1,6}", str(value)) else None


def judge_file(
    adapter: Adapter, config: object, args: Mapping[str, Any], model: str, names: Sequence[str] = ()
) -> list[Finding]:
    """Return the findings on an adapter's adapter_config.json, whatever it holds, against the server's flags.

    ``names``: further ones of the served ``model``, which may be a copy of another precision.
    """
    what = f"adapter {adapter.name}"
    if not isinstance(config, Mapping):
        got = f"{adapter.repo} has no JSON object in {CONFIG}"
        return [Finding("refused", what, "an adapter of PEFT", got, "correct its repo or revision")]
    found = _features(what, config)
    ranks = [config.get("r"), *_values(config.get("rank_pattern"))]
    whole = [one for one in ranks if isinstance(one, int) and not isinstance(one, bool) and 0 < one < 1 << 20]
    flags = {cli.flag_name(str(key)): value for key, value in args.items()}
    most = _number(flags.get("max-lora-rank", DEFAULT_RANK))
    if not whole or len(whole) < len(ranks):
        got = f"r: {str(config.get('r'))[:40]}"
        found.append(Finding("refused", what, "a rank", got, "correct its repo or revision"))
    elif most is not None and max(whole) > most:
        fits = next((one for one in RANKS if one >= max(whole)), None)
        remedy = f"set vllm_server_args: {{max-lora-rank: {fits}}}" if fits else "vLLM serves no adapter of such a rank"
        found.append(Finding("refused", what, f"a rank up to {most} (max-lora-rank)", str(max(whole)), remedy))
    base = str(config.get("base_model_name_or_path") or "")[:200]
    if base and base not in (model, adapter.base, *names):
        remedy = f"serve it with its own model; of the same one in another precision or place, say `base: {base}`"
        found.append(Finding("warning", what, f"one for {model}", f"one for {base}", remedy))
    return found or [Finding("ok", what, f"one for {model}", f"rank {max(whole)}")]


def _values(pattern: object) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, Mapping) else []


def _features(what: str, config: Mapping[str, Any]) -> list[Finding]:
    """Return what vLLM refuses of an adapter whatever its flags are (0.32.0, lora/peft_helper.py)."""
    wrong = []
    if str(config.get("peft_type") or "LORA").upper() != "LORA":
        wrong.append(f"peft_type {str(config['peft_type'])[:40]}")
    wrong += [
        name for name in ("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication") if config.get(name)
    ]
    if str(config.get("bias") or "none") != "none":
        wrong.append(f"bias {str(config['bias'])[:40]}")
    saved = config.get("modules_to_save") or []
    if isinstance(saved, list) and set(map(str, saved)) - {"classifier", "score"}:
        wrong.append("modules_to_save")
    if not wrong:
        return []
    return [
        Finding("refused", what, "an adapter that vLLM loads", ", ".join(wrong), "train or convert it without that")
    ]
