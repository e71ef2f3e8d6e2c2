# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of known failures: the model and its files. Pure.

Fragments are vLLM 0.32.0's unless said otherwise; the file is named at the pattern.
"""

from __future__ import annotations

from ..common.failure import FailureClass
from . import explain_model
from .row import Row, on

#: A Hub id within a URL such as https://huggingface.co/api/models/meta-llama/Llama-3.1-8B/revision/main
_URL = r"https?://[^/\s]+/(?:api/models/)?(?P<repo>[\w.-]+/[\w.-]*\w)"

ROWS: tuple[Row, ...] = (
    Row(
        FailureClass.GATED_MODEL,
        "The model's owner grants access to each person, and the token has no access.",
        (
            on(
                lambda _: explain_model.wrong_token(),
                r"Invalid (?:credentials in Authorization header|user token|username or password)",  # the Hub
            ),
            on(
                explain_model.gated,
                rf"Cannot access gated repo for url {_URL}",  # huggingface_hub utils/_http.py
                rf"trying to access a gated repo[\s\S]*?{_URL}",  # transformers utils/hub.py
                r"Access to model (?P<repo>\S+) is restricted",
                r"Cannot access gated repo|trying to access a gated repo|awaiting a review from the repo authors",
            ),
        ),
    ),
    Row(
        FailureClass.REMOTE_CODE_REFUSED,
        "The model needs Python code from its repository, and this code is not allowed to run.",
        (
            on(
                explain_model.remote_code,
                r"contains custom code which must be executed",  # transformers dynamic_module_utils.py
                r"requires you to execute the (?:configuration|modeling) file",
                # transformers_utils/config.py, tokenizers/hf.py
                r"Failed to load the (?:model config|tokenizer)\. If the (?:model|tokenizer) is a custom",
                r"(?:pass the argument|consider setting) `trust_remote_code=True`",
            ),
        ),
    ),
    Row(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        "This vLLM, or this build of it, cannot run this kind of model, weights or GPU.",
        (
            # model_executor/models/registry.py _raise_for_unsupported
            on(
                explain_model.unknown_model,
                r"Model architectures \['?(?P<arch>[^\]]*?)'?\] are not supported for now",
                r"Model architecture (?P<arch>\S+) is not supported in-tree anymore",
                r"model type `(?P<arch>[^`]+)` but Transformers does not recognize this architecture",
            ),
            on(
                explain_model.newer_files,  # transformers
                r"(?P<what>Tokenizer class \w+ does not exist[^\n]*)",
            ),
            on(explain_model.broken_model, r"Model architectures \['?(?P<arch>[^\]]*?)'?\] failed to be inspected"),
            on(
                explain_model.dropped_model,
                r"Model architecture (?P<arch>\S+) was supported in vLLM until v(?P<last>[\w.]*\w)",
            ),
            # config/model.py, platforms/interface.py
            on(
                explain_model.quantisation,
                r"Unknown quantization method: (?P<method>\w+)",
                r"\b(?P<method>\w+) quantization is currently not supported in",
                r"[Qq]uantization method (?P<method>\S+) is not supported for the current GPU",
            ),
            on(
                lambda _: explain_model.other_processor(),
                r"\AIllegal instruction|Fatal Python error: Illegal instruction",
                # v1/executor/multiproc_executor.py, v1/utils.py, v1/engine/utils.py: killed by signal 4
                r"died unexpectedly \(exit code: -4\)|died with exit code -4\b|Failed core proc[^\n]*': -4\b",
            ),
            on(
                explain_model.other_gpu,
                r"no kernel image is available for execution|invalid device function"
                r"|device kernel image is invalid|for GPU arch ?: ?gfx\w+",
            ),  # HIP
        ),
    ),
    Row(
        FailureClass.WEIGHTS_CORRUPT,
        "A weight file is there but cannot be read.",
        (
            # safetensors
            on(explain_model.corrupt("is cut short"), r"incomplete metadata, file not fully covered"),
            on(
                explain_model.corrupt("is no safetensors file (often a Git LFS pointer or a saved error page)"),
                r"[Hh]eader ?[Tt]oo ?[Ll]arge|[Ii]nvalid ?[Hh]eader",
            ),
            on(
                explain_model.corrupt("cannot be read"),
                r"SafetensorError|PytorchStreamReader failed|invalid load key|UnpicklingError",
            ),
            on(
                explain_model.no_json,
                r"[Ii]t looks like the config file at '(?P<file>[^']+)' is not a valid JSON file",  # transformers
                r"validation errors? for ModelConfig\n\s*Value error, (?:Expecting value|Extra data): line \d",
            ),
        ),
    ),
    Row(
        FailureClass.WEIGHTS_MISMATCH,
        "The weights are not those that this vLLM's model code expects.",
        (
            on(
                explain_model.weights_mismatch,
                r"(?P<what>There is no module or parameter named[^\n]*|size mismatch for[^\n]*)",
            ),
        ),
        rank=1.5,
    ),
    Row(
        FailureClass.CACHE_INCOMPLETE,
        "Files of the model are missing on the node.",
        (
            on(
                explain_model.files_missing,
                # huggingface_hub _snapshot_download.py
                r"is incomplete: (?P<count>\d+) file\(s\) are missing \((?P<files>[^)]*)\)",
                # model_executor/model_loader/default_loader.py
                r"Cannot find any model weights with",
                # a shard that is missing lacks whole weights, never scales and biases alone
                r"Following weights were not initialized from checkpoint: \{"
                r"(?P<tensors>(?=[^}]*weight(?:_packed)?')[^}]*)",
                r"does not appear to have (?:a|any) files? named (?P<file>[\w.-]*\w)",  # transformers utils/hub.py
                r"No such file or directory: '?\"?(?P<file>[^'\"\n]*(?:/snapshots/|/blobs/|\.safetensors|\.gguf"
                r"|/(?:config|tokenizer|generation_config|preprocessor_config|model)[\w.-]*\.(?:json|model|bin))"
                r"[^'\"\n]*)",
            ),
        ),
    ),
    Row(
        FailureClass.CACHE_MISS_OFFLINE,
        "The model is not on the node and cannot be downloaded.",
        (
            # huggingface_hub _snapshot_download.py, file_download.py, utils/_http.py
            on(
                explain_model.not_cached,
                r"outgoing traffic has been disabled|offline mode is enabled|OfflineModeIsEnabled",
            ),
            on(
                explain_model.not_reached,
                r"LocalEntryNotFoundError|Please check your (?:internet )?connection",
                r"We couldn't connect to '[^']+' to load the files",  # transformers utils/hub.py
            ),
        ),
    ),
    Row(
        FailureClass.MODEL_NOT_FOUND,
        "There is no such model, revision or folder.",
        (
            # huggingface_hub utils/_validators.py, utils/_http.py
            on(
                explain_model.no_folder,
                r"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '(?P<path>[^']+)'",
            ),
            on(
                explain_model.no_revision,
                rf"Revision Not Found for url: {_URL}",
                r"Revision Not Found|not a valid git identifier",
            ),
            on(
                explain_model.no_repo,
                rf"Repository Not Found for url: {_URL}",
                # transformers
                r"(?<![\w./-])(?P<repo>[\w./-]+) is not a local folder and is not a valid model identifier",
                r"Repository Not Found|is not a valid model identifier",
            ),
            # transformers_utils/config.py
            on(
                explain_model.no_config,
                r"Invalid repository ID or local directory specified: '(?P<path>[^']+)'",
                r"No supported config format found in (?P<path>[\w./-]+\w)",
            ),
        ),
        rank=1,
    ),
    Row(
        FailureClass.DOWNLOAD_FAILED,
        "A download of the model broke off.",
        (on(explain_model.download_failed, r"(?P<what>(?:CAS service|Data processing) error[^\n]*)"),),
        rank=1.5,
    ),
)
