# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where the model or its files are at fault. Pure."""

from __future__ import annotations

import re

from .case import Case
from .phrases import STAGE, Explain, Words, cut, setting, variable


def _repo(case: Case) -> str:
    return case.get("repo") or case.context.model_name


def _revision(case: Case) -> str:
    revision = case.context.arg("revision")
    return f" at revision {revision}" if revision else ""


def gated(case: Case) -> Words:
    repo = _repo(case)
    return (
        f"{repo} is gated, and the server has no token with access to it",
        f"Accept the licence at https://huggingface.co/{repo} with the account that owns the token, and put "
        "that token into the vault as `hf_token`",
    )


def wrong_token() -> Words:
    """Explain a token that the Hub does not know."""
    return (
        "The Hub does not know the token, so it refuses models that need none, too",
        "Put a token that is valid into the vault as `hf_token`, or leave it out for a model that is open to all",
    )


def files_missing(case: Case) -> Words:
    if case.get("count"):
        missing = f"{case.get('count')} file(s) are missing: {case.get('files')}"
    elif case.get("tensors"):
        missing = f"its files lack weights such as {case.get('tensors').split(', ')[0]}, so a shard must be missing"
    elif case.get("file"):
        missing = f"{case.get('file')} is missing"
    else:
        missing = "it holds no weights"
    return (
        f"The copy of {case.context.model_name}{_revision(case)} on the node is incomplete ({missing})",
        f"Complete it with {STAGE} (it checks every file)"
        + ("; if no file is missing, choose a newer image (`vllm_image_tag`)" if case.get("tensors") else ""),
    )


def not_cached(case: Case) -> Words:
    return (
        f"{case.context.model_name}{_revision(case)} is not in the container's cache, and downloads are off",
        f"Stage it with {STAGE}, with the same `hf_cache_path` and `vllm_server_revision`",
    )


def not_reached(case: Case) -> Words:
    return (
        f"{case.context.model_name}{_revision(case)} is not in the container's cache, and the node cannot reach the "
        "Hub",
        f"Stage it with {STAGE} (with `hf_cache_source: controller` the node needs no internet), or let the node "
        "reach huggingface.co",
    )


def no_folder(case: Case) -> Words:
    path = case.get("path")
    if not path.startswith(("/", ".", "~")):
        return no_repo(case)
    return (
        f"The container has no folder {path} for the model",
        f"Mount the folder that holds the model's config.json at {path} (`vllm_server_volumes`), or set "
        "`vllm_server_model` to a Hub id",
    )


def no_config(case: Case) -> Words:
    path = case.get("path")
    if not path.startswith(("/", ".", "~")):
        cause, remedy = no_repo(case)
        # In vLLM 0.8.5 and 0.9.2 these are also the words of a server that may not download.
        return cause, f"{remedy}. Where the server may not download, check that the model is in its cache"
    return (
        f"The folder {path} holds no model that vLLM can read (no config.json and no params.json)",
        f"Check what is mounted at {path}, or set `vllm_server_model` to a Hub id",
    )


def no_revision(case: Case) -> Words:
    revision = case.context.arg("revision")
    return (
        f"{_repo(case)} has no revision {revision}" if revision else f"{_repo(case)} has no such revision",
        "Set `vllm_server_revision` to a commit that the model's page lists under Files and versions",
    )


def no_repo(case: Case) -> Words:
    return (
        f"The Hub has no model {case.get('repo') or case.get('path') or case.context.model_name}, or it is private "
        "and the token has no access to it (the Hub gives the same answer for both)",
        "Compare `vllm_server_model` letter by letter with the model's page, and set `hf_token` if the model is "
        "private",
    )


def corrupt(how: str) -> Explain:
    def explain(case: Case) -> Words:
        return (
            f"A weight file of {case.context.model_name} {how}",
            "Find it with `hf_snapshot` (`state: verified`, `verify: full` compares checksums), and fetch it again "
            f"with {STAGE}",
        )

    return explain


def no_json(case: Case) -> Words:
    return (
        f"{case.get('file') or f'A file such as config.json of {case.context.model_name}'} is empty or no JSON (often "
        "a Git LFS pointer or a saved error page)",
        f"Fetch the model's files again with {STAGE}",
    )


def remote_code(case: Case) -> Words:
    return (
        f"{case.context.model_name} has its own Python code, and vLLM does not run it by default",
        f"Read that code, and if you trust it set {setting(trust_remote_code='true')} and pin "
        "`vllm_server_revision` to a commit",
    )


def unknown_model(case: Case) -> Words:
    return (
        f"vLLM in {case.context.image_name} does not know the model architecture {case.get('arch')}",
        "Choose a newer image (`vllm_image_tag`), or a model from vLLM's list of supported ones",
    )


def dropped_model(case: Case) -> Words:
    last = case.get("last")
    return (
        f"vLLM supports the model architecture {case.get('arch')} only up to v{last}",
        f"Set `vllm_image_tag` to a release up to v{last}",
    )


def broken_model(case: Case) -> Words:
    return (
        f"vLLM knows the model architecture {case.get('arch')}, but its code cannot be imported in "
        f"{case.context.image_name}",
        "Look for the import that failed in the lines above this error, and choose an image where it works",
    )


def quantisation(case: Case) -> Words:
    return (
        f"vLLM in {case.context.image_name} cannot run {case.get('method')} quantised weights on this hardware",
        "Choose a version of the model in another format (MI300X and later run FP8), or a newer image",
    )


def other_processor() -> Words:
    """Explain a process that was ended by signal 4."""
    return (
        "The node's processor lacks an instruction that the image uses (SIGILL)",
        "Choose an image for this processor (vLLM's CPU builds need AVX2 or AVX-512)",
    )


def other_gpu(case: Case) -> Words:
    return (
        f"{case.context.image_name[0].upper()}{case.context.image_name[1:]} is not built for this node's GPUs",
        "Choose an image for this GPU's architecture (`rocm_info` shows it as gfx), or build one with "
        "`vllm_image_source: build`",
    )


def newer_files(case: Case) -> Words:
    what = cut(case.said())
    return (
        f"The code in {case.context.image_name} does not fit the files of {case.context.model_name} ({what})",
        "Choose a newer image (`vllm_image_tag`) if the model is newer than the image, or pin `vllm_server_revision` "
        "to an earlier commit of the model",
    )


def weights_mismatch(case: Case) -> Words:
    what = cut(case.said())
    tensor = f"no place for {what}" if case.text.startswith("KeyError") else what
    return (
        f"The weights of {case.context.model_name} are not those that vLLM in {case.context.image_name} expects "
        f"({tensor})",
        "Choose a newer image (`vllm_image_tag`) or another version of the model, and check that quantization and "
        "hf-overrides in `vllm_server_args` are those of the model's page",
    )


def download_failed(case: Case) -> Words:
    what = cut(case.said())
    if re.search(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", case.text):
        return (
            f"The container does not trust the certificate of the server that it downloads {case.context.model_name} "
            "from",
            f"Stage the model with {STAGE}, or mount a file with the authority's certificate and name it in "
            f"{variable(SSL_CERT_FILE='/path', REQUESTS_CA_BUNDLE='/path')}",
        )
    xet = re.search(r"(?i)xet|CAS service|Data processing", "\n".join([case.text, *case.stack]))
    return (
        f"The download of {case.context.model_name} broke off ({what})",
        f"Stage it beforehand with {STAGE}"
        + (f", or download without Xet with {variable(HF_HUB_DISABLE_XET=1)}" if xet else ", or start again"),
    )
