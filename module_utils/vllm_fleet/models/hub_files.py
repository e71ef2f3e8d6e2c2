# SPDX-License-Identifier: Apache-2.0
"""config.json and weight index of a model on the Hugging Face Hub, by huggingface_hub, and nothing else of it.

Nothing stays on this machine: the two files go to a temporary folder. A failure of the client becomes one
sentence with the next step.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import model_files
from .sizing import Facts

#: A model of one file has no index; the Hub has its size.
SINGLE = "model.safetensors"
#: Seconds for one answer of the Hub.
TIMEOUT = 15


class HubError(Exception):
    """The Hub did not give the files; the text is one sentence."""


def fetch(model: str, revision: str, token: str = "") -> Facts:
    """Return a model's figures from the Hub at ``revision`` ("" is main). Raises HubError."""
    # Read by huggingface_hub when it is imported. Its own protocol for large files is no gain for two small ones.
    os.environ |= {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT),
    }
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - only where the Hub is asked
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise HubError(
            "this Python has no huggingface_hub; install it (pip install huggingface_hub), or give plan_path, a folder"
            " with the model's config.json and model.safetensors.index.json"
        ) from error
    commit = revision or "main"
    wanted: dict[str, Any] = {"revision": commit, "token": token or None}
    try:
        with tempfile.TemporaryDirectory() as folder:
            hub.hf_hub_download(model, model_files.CONFIG, local_dir=folder, **wanted)
            size: int | None = None
            try:
                hub.hf_hub_download(model, model_files.INDEX, local_dir=folder, **wanted)
            except errors.LocalEntryNotFoundError:
                raise  # no answer, and no word about the file
            except errors.EntryNotFoundError:
                with contextlib.suppress(errors.EntryNotFoundError):
                    url = hub.hf_hub_url(model, SINGLE, revision=commit)
                    size = hub.get_hf_file_metadata(url, token=token or None, timeout=TIMEOUT).size
            found = model_files.of_folder(model, Path(folder), f"config.json on the Hub, {commit[:12]}")
    except errors.GatedRepoError as error:
        raise HubError(
            f"{model} is gated: accept its licence on its page, and give that account's token (hf_token, from vault)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"the Hub has no {model}, or shows it to its owners alone (hf_token, from vault)") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{model} has no revision {commit} on the Hub; correct vllm_server_revision or plan_revision"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError, too, but from a Hub that gave no answer
        raise _unreached(error.__cause__ or error) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{model} has no {model_files.CONFIG} on the Hub, so it is no model that vLLM serves") from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise _unreached(error) from error
    if found is None:
        raise HubError(f"{model} has an empty {model_files.CONFIG} on the Hub")
    return replace(found, weights_bytes=found.weights_bytes if found.weights_bytes is not None else size)


def _unreached(error: BaseException) -> HubError:
    told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return HubError(
        f"the Hub cannot be reached ({told.rstrip('.')}); give plan_path, a folder with the model's config.json and"
        " model.safetensors.index.json"
    )
