# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where an option is wrong: a flag, a command, a mount, a port, an image. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from .case import Case
from .flags import meant, removed, split_words
from .phrases import STAGE, Words, cut, listed, setting

#: Flags that people set, for a log that lists none. Of the two commands only the old one prints them all.
_FLAGS = """
api-key api-server-count async-scheduling attention-backend block-size chat-template compilation-config config
cpu-offload-gb data-parallel-size disable-log-stats distributed-executor-backend download-dir dtype
enable-auto-tool-choice enable-chunked-prefill enable-expert-parallel enable-lora enable-prefix-caching enforce-eager
generation-config gpu-memory-utilization headless hf-overrides hf-token host kv-cache-dtype kv-cache-memory-bytes
limit-mm-per-prompt load-format lora-modules master-addr master-port max-logprobs max-lora-rank max-model-len
max-num-batched-tokens max-num-seqs model-loader-extra-config nnodes node-rank override-generation-config
pipeline-parallel-size port quantization reasoning-parser revision root-path safetensors-load-strategy seed
served-model-name shutdown-timeout speculative-config tensor-parallel-size tokenizer tokenizer-mode tool-call-parser
trust-remote-code uvicorn-log-level
"""


def _known_flags(lines: Sequence[str]) -> list[str]:
    """Flags of the usage text that argparse printed, else the common ones."""
    found: set[str] = set()
    usage = False
    for line in lines:
        usage = usage or line.startswith("usage: ")
        if ": error: " in line:
            break
        if usage:
            found.update(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", line))
    return sorted(found) if len(found) > 10 else _FLAGS.split()


def unknown_flag(case: Case) -> Words:
    flags, stray = split_words(case.get("unknown"))
    if stray:
        return _stray(stray, case)
    known = _known_flags(case.run.lines)
    steps: list[str] = []
    rest: list[str] = []
    for given in flags:
        flag = given.lstrip("-").replace("_", "-")
        gone, good = removed(flag), meant(flag, known)
        value = case.context.arg(flag)
        if gone is not None:
            since = f" (gone since v{gone.release})" if gone.release else ""
            out = gone.instead.startswith("leave it out")
            rest_of_it = gone.instead.removeprefix("leave it out")
            steps.append(
                f"leave out `{flag}`{since}{rest_of_it}" if out else f"instead of `{flag}`{since} {gone.instead}"
            )
        elif not given.startswith("--") and len(flag) > 3:
            steps.append(f"write `{flag}` (on a command line with two dashes)")
        elif good and good != flag:
            how = f", that is {setting(**{good: value})}" if len(flags) == 1 and value is not None else ""
            steps.append(f"replace `{flag}` by `{good}`{how}")
        else:
            rest.append(f"`{flag}`")
    if rest:
        it = "it" if len(rest) == 1 else "them"
        steps.append(f"remove {listed(rest)}, or correct {it} by the help of this image (`vllm serve --help=all`)")
    return (
        f"This vLLM does not know {listed([f'`{flag}`' for flag in flags])}",
        f"In `vllm_server_args` {', and '.join(steps)}",
    )


def _stray(words: Sequence[str], case: Case) -> Words:
    if words[0] in ("serve", "vllm"):
        return (
            f"The command repeats `{words[0]}`, with which the image's own command begins already",
            "Set `vllm_server_entrypoint: [vllm, serve]`, or leave the word out of the command",
        )
    return (
        f"vLLM does not know what to do with {listed([f'`{word}`' for word in words[:5]])}",
        "Correct `vllm_server_args`, where each value belongs to a flag",
    )


#: Configurations of vLLM that a flag takes as one JSON object.
_OBJECTS = {
    "SpeculativeConfig": "speculative-config",
    "CompilationConfig": "compilation-config",
    "KVTransferConfig": "kv-transfer-config",
    "EPLBConfig": "eplb-config",
    "StructuredOutputsConfig": "structured-outputs-config",
    "PoolerConfig": "pooler-config",
}


def refused_value(case: Case) -> Words:
    flag = case.get("flag").split("/")[-1].lstrip("-").replace("_", "-")
    flag = _FLAG_OF.get(flag, flag)
    within = next((name for config, name in _OBJECTS.items() if f" for {config}\n" in case.match.group(0)), "")
    if within:
        return (
            f"The value of {case.get('flag')} in {within} is refused: {case.get('why').strip()[:300]}",
            f"Correct it in {within} in `vllm_server_args`",
        )
    return (
        f"The value of {flag} is refused: {case.get('why').strip()[:300]}",
        f"Correct {flag} in `vllm_server_args`",
    )


def cpu_binding(case: Case) -> Words:
    return (
        f"This release of vLLM does not know {case.get('value')} as a list of CPUs for its threads",
        "Set VLLM_CPU_OMP_THREADS_BIND in `vllm_server_env` to a list of CPUs such as 0-31, or to all",
    )


def dtype(case: Case) -> Words:
    fits = re.findall(r"torch\.(\w+)", case.get("fits")) or ["auto"]
    return (
        f"Weights quantised by {case.get('method')} cannot be computed in {case.get('dtype')}",
        f"Set {setting(dtype=fits[0])}, or leave dtype out",
    )


#: Arguments within a flag's JSON object, as vLLM's messages name them.
_WITHIN = {
    "num-speculative-tokens": "speculative-config",
    "draft-tensor-parallel-size": "speculative-config",
    "speculative-draft-tensor-parallel-size": "speculative-config",
}
#: Flags with a JSON object, by the words of a message that names none.
_ABOUT = {
    "speculative-config": r"(?i)\beagle|\bdraft|\bspeculative|\bmtp\b",
    "kv-transfer-config": r"(?i)\bconnector\b|kv[ _]transfer",
}
#: Fields of vLLM's configurations whose flags have another name.
_FLAG_OF = {"cache-dtype": "kv-cache-dtype"}
#: What vLLM asks for, after what is wrong.
_ASKS = re.compile(
    r"(?i)\b(?:please|try|consider)\b|[.!;:] (?=(?:reduce|increase|decrease|lower|raise|set|enable|disable|use)\b)"
)


def _named(text: str) -> list[str]:
    """The flags that a message names, with dashes or with underscores; first of all those that it asks to change."""
    asks = _ASKS.search(text)
    found = (_names(text[asks.end() :]) if asks else []) or _names(text)
    return found or [flag for flag, words in _ABOUT.items() if re.search(words, text)][:1]


def _names(text: str) -> list[str]:
    spelled = set(re.findall(r"--([a-z][a-z0-9-]{2,40})", text))
    words = [word.replace("_", "-") for word in re.findall(r"(?:--)?([a-z][a-z0-9_-]{3,40})", text[:2000])]
    words = [_WITHIN.get(word, word) for word in words]
    common = {flag for flag in _FLAGS.split() if "-" in flag}
    return list(dict.fromkeys(word for word in words if word in spelled or word in common))[:4]


def refused_by_code(case: Case) -> Words:
    variable = re.search(r"\bVLLM_[A-Z0-9_]+", case.text)
    if any("/vllm/envs.py" in frame for frame in case.stack[-2:]):
        what = variable.group(0) if variable else "what the message names"
        return (
            f"vLLM refuses an environment variable: {cut(case.said(), 300)}",
            f"Correct {what} in `vllm_server_env`",
        )
    flags = _named(case.text)
    what = f"Change {listed(flags)}" if flags else "Correct what the message names"
    return f"vLLM refuses its settings: {cut(case.said(), 300)}", f"{what} in `vllm_server_args` as it says"


def not_by_model(case: Case) -> Words:
    flags = _named(case.text)
    what = f"Remove {listed(flags)} from" if flags else "Remove what asks for it from"
    return (
        f"The model cannot do what an option asks for: {cut(case.said(), 300)}",
        f"{what} `vllm_server_args`, or choose a newer image (`vllm_image_tag`)",
    )


def other_address(case: Case) -> Words:
    return (
        f"An address that the server is to use is not one of this node's, or has no meaning ({cut(case.said(), 200)})",
        "Correct host and master-addr in `vllm_server_args` and VLLM_HOST_IP in `vllm_server_env` (`ip -br address` on "
        "the node shows its addresses), or leave them out",
    )


def chat_template(case: Case) -> Words:
    return (
        f"The chat template cannot be read ({cut(case.said(), 200)})",
        "Correct the file that chat-template in `vllm_server_args` names, or pin `vllm_server_revision` to another "
        "commit of the model where its own template is at fault",
    )


def certificate(case: Case) -> Words:
    return (
        f"A file of certificates or keys cannot be read ({cut(case.said(), 200)})",
        "Leave ssl-certfile and ssl-keyfile out of `vllm_server_args`, for TLS ends at the gateway"
        if any("/uvicorn/" in frame for frame in case.stack)
        else "Correct SSL_CERT_FILE and REQUESTS_CA_BUNDLE in `vllm_server_env`, and mount their files with "
        "`vllm_server_volumes`",
    )


def adapter(case: Case) -> Words:
    flags = _named(case.text)
    what = listed([*flags, "lora-modules"] if "lora-modules" not in flags else flags)
    return (
        f"vLLM cannot load an adapter: {cut(case.said(), 250)}",
        f"Correct {what} in `vllm_server_args`, and mount the adapter's folder with `vllm_server_volumes`",
    )


def _limits(why: str) -> str:
    """Return the setting that fits, where the words are `a (2096) must be <= b (2048)` or the other way round."""
    found = re.search(
        r"(?P<low>\w+) \((?P<need>\d+)\)[^.]{0,60}(?:<=|no (?:more|larger) than|less than or equal to) "
        r"(?P<name>[a-z_]{4,}) \((?P<have>\d+)\)",
        why,
    ) or re.search(r"(?P<name>[a-z_]{4,}) \(\d+\) is smaller than [a-z_]+ \((?P<need>\d+)\)", why)
    return f"Set {setting(**{found['name']: found['need']})} or more" if found else ""


def refused_arguments(case: Case) -> Words:
    why = case.get("why") or case.match.group(0)
    flags = _named(why)
    correct = f"Correct {listed(flags)} in `vllm_server_args`" if flags else "Correct `vllm_server_args`"
    return f"vLLM refuses its arguments: {cut(why, 300)}", _limits(why) or correct


def no_attention(case: Case) -> Words:
    given = [name for name in ("attention-backend", "kv-cache-dtype", "block-size") if case.context.arg(name)]
    remove = f"Remove {listed(given)} from `vllm_server_args`, or choose" if given else "Choose"
    return (
        f"No attention backend of vLLM can run this model with these settings ({cut(case.get('why'), 250)})",
        f"{remove} a newer image (`vllm_image_tag`) or another version of the model",
    )


def no_program(case: Case) -> Words:
    return (
        f"The container's command is `{case.get('program')}`, but {case.context.image_name} has no such program",
        "Set `vllm_server_entrypoint` to the image's own command (`[vllm, serve]` in vllm/vllm-openai-rocm), or use "
        "an image that contains vLLM",
    )


def no_mount(case: Case) -> Words:
    return (
        f"The folder {case.get('path')} does not exist on the node, so Docker cannot mount it",
        "Create it, or correct `hf_cache_path` or `vllm_server_volumes`",
    )


def two_lists(case: Case) -> Words:
    return (
        f"HIP_VISIBLE_DEVICES ({case.get('hip')}) and CUDA_VISIBLE_DEVICES ({case.get('cuda')}) contradict each other",
        "Set only HIP_VISIBLE_DEVICES in `vllm_server_env`",
    )


def no_parser(case: Case) -> Words:
    flag = "reasoning-parser" if case.get("what") == "reasoning" else "tool-call-parser"
    near = difflib.get_close_matches(case.get("parser"), re.findall(r"[\w.-]+", case.get("choices")), 3, 0.7)
    hint = f" (similar names: {listed([f'`{name}`' for name in near])})" if near else ""
    return (
        f"This vLLM has no {case.get('what')} parser `{case.get('parser')}`",
        f"Set {flag} in `vllm_server_args` to a parser that it has{hint}",
    )


def port(case: Case) -> Words:
    mine = str(case.context.port) if case.context.port else ""
    port = case.get("port") or mine
    if port and mine and port != mine:
        return (
            f"Another process uses port {port}, where the server's own processes meet",
            f"Stop it (`ss -ltnp 'sport = :{port}'` on the node names it), or set another master-port in "
            "`vllm_server_args`",
        )
    look = f"`ss -ltnp 'sport = :{port}'`" if port else "`ss -ltnp`"
    return (
        f"Another process on the node uses {f'port {port}' if port else 'the port'}",
        f"Stop it ({look} and `docker ps` name it; if neither does, a killed Docker engine left the port taken and "
        "`systemctl restart docker` frees it), or choose another `vllm_server_port`",
    )


def image(case: Case) -> Words:
    image = case.get("image").rstrip(".:,")
    return (
        f"{f'The image {image}' if image else case.context.image_name.capitalize()} is not on the node, and the "
        "registry does not deliver it",
        f"Check `vllm_image_name`, `vllm_image_tag` and `vllm_image_digest`, and fetch it with {STAGE}",
    )
