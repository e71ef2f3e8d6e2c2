# SPDX-License-Identifier: Apache-2.0
"""The command line of `vllm serve`, built from the usage text that vLLM 0.32.0 printed (serve-usage.txt).

A flag that vLLM does not have is refused as vLLM refuses it, one that it has is accepted with the same number of
values. What the stand-in does not act upon is read and forgotten.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from standin_vllm import VERSION

USAGE = Path(__file__).with_name("serve-usage.txt")

# The usage text names the first spelling of a flag only; these are the others (vLLM 0.32.0 engine/arg_utils.py,
# entrypoints/launchers/cli_args.py).
SHORT = {
    "--api-server-count": "-asc",
    "--quantization": "-q",
    "--pipeline-parallel-size": "-pp",
    "--nnodes": "-n",
    "--node-rank": "-r",
    "--tensor-parallel-size": "-tp",
    "--decode-context-parallel-size": "-dcp",
    "--prefill-context-parallel-size": "-pcp",
    "--data-parallel-size": "-dp",
    "--data-parallel-rank": "-dpn",
    "--data-parallel-start-rank": "-dpr",
    "--data-parallel-size-local": "-dpl",
    "--data-parallel-address": "-dpa",
    "--data-parallel-rpc-port": "-dpp",
    "--data-parallel-backend": "-dpb",
    "--speculative-config": "-sc",
    "--diffusion-config": "-dc",
    "--compilation-config": "-cc",
    "--attention-config": "-ac",
}


def human_readable_int_or_auto(text: str) -> int:
    """`8192`, `32k` (thousand), `32K` (1024) and `auto` (-1), as --max-model-len takes them."""
    if text in ("-1", "auto"):
        return -1
    factors = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1:] in factors else int(text)


TYPES = {
    "--port": int,
    "--shutdown-timeout": int,
    "--tensor-parallel-size": int,
    "--max-num-seqs": int,
    "--nnodes": int,
    "--node-rank": int,
    "--master-port": int,
    "--max-model-len": human_readable_int_or_auto,
    "--gpu-memory-utilization": float,
}
DEFAULTS = {
    "--port": 8000,
    "--shutdown-timeout": 0,
    "--tensor-parallel-size": 1,
    "--max-num-seqs": 256,
    "--nnodes": 1,
    "--node-rank": 0,
    "--master-addr": "127.0.0.1",
    "--master-port": 29501,
    "--max-model-len": -1,
    "--gpu-memory-utilization": 0.92,
    "--model": "Qwen/Qwen3-0.6B",
}


def _usage_groups(text: str) -> list[str]:
    """The outermost [...] groups of a usage text, without their brackets."""
    groups, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        if sign == "[":
            depth += 1
            start = place + 1 if depth == 1 else start
        elif sign == "]":
            depth -= 1
            if depth == 0:
                groups.append(" ".join(text[start:place].split()))
    return groups


def _add_flag(parser: argparse._ActionsContainer, group: str) -> None:
    if " | " in group and group.startswith("--"):
        first, *rest = group.split(" | ")
        names = [first, *(name for name in rest if not name.startswith("--no-"))]
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None)
        return
    flag, _, value = group.partition(" ")
    names = [flag, SHORT[flag]] if flag in SHORT else [flag]
    if not value:
        parser.add_argument(*names, action="store_true")
        return
    if value.endswith("...]"):
        parser.add_argument(*names, nargs="+", default=DEFAULTS.get(flag))
        return
    choices = value[1:-1].split(",") if re.fullmatch(r"\{[^{} ]+\}", value) else None
    if choices and choices[0].isdigit():
        choices = None
    parser.add_argument(
        *names,
        nargs="?" if value.startswith("[") and "'" not in value else None,
        choices=choices,
        type=TYPES.get(flag, str),
        default=DEFAULTS.get(flag),
    )


class _SortedHelpFormatter(argparse.HelpFormatter):
    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        super().add_arguments(sorted(actions, key=lambda action: action.option_strings))


def build_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of `vllm` and, in it, that of `vllm serve`."""
    parser = argparse.ArgumentParser(prog="vllm", description="vLLM CLI")
    parser.add_argument("-v", "--version", action="version", version=VERSION)
    subparsers = parser.add_subparsers(dest="subparser")
    serve = subparsers.add_parser(
        "serve",
        usage="vllm serve [model_tag] [options]",
        formatter_class=_SortedHelpFormatter,
        description="Launch a local OpenAI-compatible API server to serve LLM completions via HTTP.",
    )
    serve.add_argument("model_tag", nargs="?", help="The model tag to serve (optional if specified in config)")
    for group in _usage_groups(USAGE.read_text(encoding="utf-8")):
        if group.startswith("--"):
            _add_flag(serve, group)
    return parser, serve


def _print_help(serve: argparse.ArgumentParser, keyword: str) -> None:
    """`--help=all` lists every flag, `--help=WORD` those whose name has the word (vLLM utils/argparse_utils.py)."""
    keyword = keyword.lower().replace("_", "-")
    if keyword == "all":
        serve.print_help()
        return
    matching = [a for a in serve._actions if any(keyword in name.lower() for name in a.option_strings)]
    formatter = argparse.HelpFormatter(prog=serve.prog)
    if matching:
        formatter.start_section(f"Arguments matching '{keyword}'")
        formatter.add_arguments(matching)
        formatter.end_section()
    else:
        formatter.add_text(
            f"No group or arguments matching '{keyword}'.\n"
            "Use '--help' to see available groups or '--help=all' to see all available parameters."
        )
    print(formatter.format_help())


def _normalise(arguments: Sequence[str]) -> list[str]:
    """Underscores become dashes, `--json-flag.key value` goes (vLLM folds it into a dictionary)."""
    normal: list[str] = []
    skip_value = False
    for argument in arguments:
        if skip_value:
            skip_value = False
            continue
        if not argument.startswith("--"):
            normal.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if "." in name:
            skip_value = not equals
            continue
        normal.append(name.replace("_", "-") + equals + value)
    return normal


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """The namespace of `vllm serve`, with `model` filled; None when help was asked for.

    Ends the process with code 2 and a usage text on a bad flag, as argparse does.
    """
    parser, serve = build_parser()
    for argument in arguments:
        if argument.startswith("--help="):
            _print_help(serve, argument.partition("=")[2])
            return None
    options = parser.parse_args(_normalise(arguments))
    if options.subparser is None:
        parser.print_help()
        return None
    if options.config:
        serve.error("the stand-in does not read --config files; give the flags themselves")
    if options.model_tag is not None:
        options.model = options.model_tag
    return options
