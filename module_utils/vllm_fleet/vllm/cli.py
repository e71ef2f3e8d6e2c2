# SPDX-License-Identifier: Apache-2.0
"""The command line of ``vllm serve``: options to arguments and back.

Pure: values in, values out. One canonical form is written (flags sorted, hyphens, ``--no-x`` for false), and any
form is read, so that a container started by hand compares flag by flag with the one that is wanted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FlagValue = bool | str | list[str]

#: ``python -m`` of this module is vLLM's old, deprecated way to start (vLLM 0.32.0 entrypoints/openai/api_server.py).
OLD_API_SERVER = "vllm.entrypoints.openai.api_server"

#: Flags that the module sets itself, and the option to use instead.
RESERVED_FLAGS = {
    "model": "model",
    "revision": "revision",
    "api-key": "api_key",
    "hf-token": "hf_token",
    "port": "port",
    "host": "bind",
}

#: First process of every rank of a server over several nodes, as it is mounted into the container (see `replica`).
REPLICA_GUARD = "/opt/vllm-fleet/replica_guard.py"

_NUMBER = re.compile(r"^-\d")
#: What argparse takes for a number and not for a flag.
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
#: Short spellings that vLLM accepts for a flag, mapped to the long one (vLLM 0.32.0 engine/arg_utils.py).
_SHORT = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-dpl": "data-parallel-size-local",
    "-dpn": "data-parallel-rank",
    "-dpr": "data-parallel-start-rank",
    "-dpa": "data-parallel-address",
    "-dpp": "data-parallel-rpc-port",
    "-dpb": "data-parallel-backend",
    "-dph": "data-parallel-hybrid-lb",
    "-dpe": "data-parallel-external-lb",
    "-dcp": "decode-context-parallel-size",
    "-pcp": "prefill-context-parallel-size",
    "-ep": "enable-expert-parallel",
    "-n": "nnodes",
    "-r": "node-rank",
    "-q": "quantization",
}


class CommandError(ValueError):
    """The arguments cannot be written as a command line; the text says which and why."""


@dataclass(frozen=True)
class Command:
    """A command line taken apart.

    ``model`` is the Hub id or path, ``flags`` maps long names without dashes to True, a string or a list of strings,
    ``rest`` keeps words that are neither.
    """

    model: str | None
    flags: dict[str, FlagValue] = field(default_factory=dict)
    rest: tuple[str, ...] = ()


def flag_name(key: str) -> str:
    """Return a flag's one spelling: ``max_model_len``, ``--max-model-len``, ``-tp`` become long, hyphenated names."""
    if key in _SHORT:
        return _SHORT[key]
    name = key[2:] if key.startswith("--") else key
    head, dot, tail = name.partition(".")
    return head.replace("_", "-") + dot + tail


def served_names(args: Mapping[str, object], model: str) -> list[str]:
    """Return the names under which a server with these flags answers, the first one first; by default its model's."""
    for key, value in args.items():
        if flag_name(str(key)) == "served-model-name" and value:
            return [str(name) for name in (value if isinstance(value, (list, tuple)) else [value])]
    return [model]


def adapter_names(args: Mapping[str, object]) -> list[str]:
    """Return the names of LoRA adapters that a server has from its start: `NAME=PATH`, or objects with a `name`."""
    found = []
    for key, value in args.items():
        if flag_name(str(key)) != "lora-modules" or not value:
            continue
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            try:
                adapter = json.loads(entry) if isinstance(entry, str) and entry.lstrip().startswith("{") else entry
            except ValueError:
                continue
            name = adapter.get("name") if isinstance(adapter, Mapping) else str(adapter).partition("=")[0].strip()
            found.extend([str(name)] if name else [])
    return found


def normalise_args(args: Mapping[str, object]) -> dict[str, FlagValue | None]:
    """Bring user-written ``args`` to one spelling; ``None`` (leave the flag out) is kept so that merging can use it.

    Raises CommandError for a flag that is given twice in two spellings, or that the module sets itself.
    """
    spelt: dict[str, str] = {}
    out: dict[str, FlagValue | None] = {}
    for key, value in args.items():
        name = flag_name(str(key))
        if name in RESERVED_FLAGS:
            option = RESERVED_FLAGS[name]
            variable = option if option == "hf_token" else f"vllm_server_{option}"
            raise CommandError(
                f"args: {key}: this flag is set by the option {option!r}; "
                f"remove it from args and set that option instead, in an inventory {variable}"
            )
        if name in spelt:
            raise CommandError(f"args: {spelt[name]} and {key} are the same flag --{name}; keep one of them")
        spelt[name] = str(key)
        out[name] = _value(name, value)
    return out


def _value(name: str, value: object) -> FlagValue | None:
    if "." in name and isinstance(value, (bool, list, tuple)):
        # A field of a config object takes the one word after it, as JSON (vLLM's FlexibleArgumentParser).
        return json.dumps(value, separators=(",", ":"))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        # vLLM reads JSON for its dict-valued flags (--speculative-config, --hf-overrides, ...).
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (Mapping, list, tuple)) for item in value):
            return json.dumps(list(value), sort_keys=True, separators=(",", ":"))
        words = [_scalar(item) for item in value]
        # The words follow the flag, so one of these would be a flag of its own: also one that the module sets itself.
        for word in words:
            if len(word) > 1 and word.startswith("-") and not _NEGATIVE.fullmatch(word):
                raise CommandError(
                    f"args: {name}: {word!r} in a list would be read as a flag; give it as a key of args"
                )
        return words
    if isinstance(value, (str, int, float)):
        return _scalar(value)
    raise CommandError(
        f"args: {name}: expected text, a number, true/false, a list or a dict, got {type(value).__name__}"
    )


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def build(
    model: str, flags: Mapping[str, FlagValue | None], *, entrypoint: Sequence[str], extra: Mapping[str, str]
) -> list[str]:
    """Return the arguments that follow ``entrypoint``: the model as vLLM wants it, then sorted flags.

    ``flags`` are those of ``normalise_args``, ``extra`` those that the module sets itself (revision, port, ...). The
    model is positional for ``vllm serve`` and ``--model`` for the old api_server module, which has no positional model.
    """
    flags = {**flags, **extra}
    words = ["--model", model] if OLD_API_SERVER in entrypoint else [model]
    for name in sorted(flags):
        words += _words(name, flags[name])
    return words


def _words(name: str, value: FlagValue | None) -> list[str]:
    if value is None:
        return []
    if value is True:
        return [f"--{name}"]
    if value is False:
        # argparse.BooleanOptionalAction, which vLLM uses for its switches.
        return [f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *value]
    # A value that begins with a dash (a negative number, a minus sign in text) would be read as a flag.
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def parse(words: Sequence[str]) -> Command:
    """Take any command line apart. Never raises: what is not understood is kept in ``rest``."""
    rest: list[str] = []
    flags: dict[str, FlagValue] = {}
    model: str | None = None
    todo = list(words)
    while todo:
        word = todo.pop(0)
        if not _is_flag(word):
            if model is None:
                model = word
            else:
                rest.append(word)
            continue
        name, equals, value = word.partition("=")
        values = [value] if equals else []
        while not equals and todo and not _is_flag(todo[0]):
            values.append(todo.pop(0))
        name = flag_name(name)
        if name == "model" and len(values) == 1:
            model = values[0]
        elif name.startswith("no-") and not values:
            flags[name[3:]] = False
        elif not values:
            flags[name] = True
        else:
            flags[name] = values[0] if len(values) == 1 else values
    return Command(model, flags, tuple(rest))


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.match(word)


def split_entrypoint(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Cut a full command line into its entrypoint and the rest, for containers whose CMD repeats ``vllm serve``."""
    words = list(words)
    for start in range(len(words)):
        if words[start].rsplit("/", 1)[-1] == "vllm" and words[start + 1 : start + 2] == ["serve"]:
            return words[: start + 2], words[start + 2 :]
        if words[start] == OLD_API_SERVER:
            return words[: start + 1], words[start + 1 :]
    if REPLICA_GUARD in words[:2] and "--" in words:
        # A rank of a Ray cluster: the server's command is a text among the guard's options.
        cut = words.index("--") + 1
        return words[:cut], words[cut:]
    return [], words


@dataclass(frozen=True)
class Started:
    """How a container starts vLLM. ``in_script``: the command stands in a shell's text, or in a script unread here."""

    command: Command
    in_script: bool


def started(words: Sequence[str]) -> Started:
    """Return the ``vllm serve`` in a container's whole command line (entrypoint and command).

    Of a script only what follows `vllm serve` in its text is known; variables in it stay what they are.
    """
    head, tail = split_entrypoint(words)
    if head:
        return Started(parse(tail), in_script=False)
    import shlex  # noqa: PLC0415  nearly no container needs it

    for word in words:
        try:
            head, inner = split_entrypoint(shlex.split(word))
        except ValueError:  # quotes that do not close: no shell's text
            continue
        if head:
            return Started(parse(inner), in_script=True)
    return Started(parse(tail), in_script=True)


def first(value: FlagValue | None) -> str | None:
    """Return a flag's value as text, of several the first; None for a switch."""
    return value[0] if isinstance(value, list) else value if isinstance(value, str) else None


def entrypoint_for(image_entrypoint: Sequence[str] | None, wanted: Sequence[str] | None) -> list[str]:
    """Return the entrypoint to run: the user's; else the image's when it is ``vllm serve``; else ``vllm serve``.

    vllm/vllm-openai-rocm has ENTRYPOINT ["vllm", "serve"], rocm/vllm has a shell or none (docker/Dockerfile.rocm and
    AMD's image): a shell as the main command would wait for someone to type, so it is replaced.
    """
    if wanted:
        return list(wanted)
    current = list(image_entrypoint or [])
    head, tail = split_entrypoint(current)
    if head and not tail:
        return current
    return ["vllm", "serve"]


_HELP_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*(?:\.[\w-]+)?)")


#: One entry of argparse's help: its flags and what they take on the first line, the explanation below.
_HELP_ENTRY = re.compile(r"^  (?P<head>-[^\n]*)(?P<text>(?:\n(?!  -|\S)[^\n]*)*)", re.MULTILINE)
#: Choices that argparse itself insists on. A list that goes on with "or" is no complete one.
_HELP_CHOICES = re.compile(r"--(?P<flag>[a-z][a-z0-9-]*) \{(?P<choices>[^{}\s]+)\}(?!\s*or\b)")
_HELP_NUMBER = re.compile(r"\(default:\s+-?\d+(?:\.\d+)?\)")
#: Numbers whose default says nothing (vLLM 0.32.0: None, or worked out later).
_NUMBERS = frozenset({"max-model-len", "max-num-batched-tokens", "max-num-seqs"})
#: Words that stand for a number.
_NO_DIGITS = frozenset({"auto", "none", "null"})


@dataclass(frozen=True)
class Known:
    """What an image's help says: its flags, the complete choices of some, and which take a number."""

    flags: frozenset[str] = frozenset()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: frozenset[str] = frozenset()


def read_help(text: str) -> Known:
    """Read argparse's help text (``vllm serve --help=all``); what it does not say clearly is left out."""
    flags = frozenset(match.group(1) for match in _HELP_FLAG.finditer(text.replace("_", "-")))
    choices: dict[str, tuple[str, ...]] = {}
    numbers = _NUMBERS & flags
    for entry in _HELP_ENTRY.finditer(text):
        found = _HELP_CHOICES.search(entry["head"])
        if found:
            choices[found["flag"]] = tuple(found["choices"].split(","))
        elif "{" not in entry["head"] and "..." not in entry["head"] and _HELP_NUMBER.search(entry["text"]):
            numbers |= set(re.findall(r"--([a-z][a-z0-9-]*) [A-Z]", entry["head"]))
    return Known(flags, choices, numbers)


def wrong_values(flags: Mapping[str, FlagValue | None], known: Known) -> list[str]:
    """Return a sentence for each of ``flags`` whose value argparse would refuse for certain."""
    out = []
    for name, value in flags.items():
        choices = known.choices.get(name)
        if choices and isinstance(value, str) and not _among(value, choices):
            out.append(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        elif name in known.numbers and not _may_be_number(value):
            out.append(f"{name}: expected a number, got {value!r}")
    return out


def _among(value: str, choices: Sequence[str]) -> bool:
    """Whether it may be a choice: some are lists of others, and vLLM reads some in any case and with any hyphen."""
    names = {choice.lower().replace("-", "_") for choice in choices}
    return all(part.lower().replace("-", "_") in names for part in value.split(","))


def _may_be_number(value: FlagValue | None) -> bool:
    """Whether it may be one number, such as ``8``, ``25.6k`` or ``O2``, or a word for none."""
    if isinstance(value, str):
        return value.lower() in _NO_DIGITS or re.search(r"\d", value) is not None
    return value in (None, False)


def unknown_flags(flags: Mapping[str, FlagValue | None], known: frozenset[str]) -> list[str]:
    """Return those of ``flags`` that the image does not know; dotted ones (config objects) count by their head."""
    out = []
    for name, value in flags.items():
        if value is None or name.startswith("-"):
            continue
        head = name.partition(".")[0]
        if value is False:
            # Not every switch has the other direction.
            if f"no-{name}" not in known:
                out.append(f"no-{name}" if name in known else name)
        elif head not in known and f"no-{head}" not in known:
            out.append(name)
    return out
