# SPDX-License-Identifier: Apache-2.0
"""How the Hub is asked: the environment of the client's process, and what an answer means."""

from pathlib import Path
from typing import Any

import pytest

from ansible.module_utils.vllm_fleet.weights.hub import Client, answered, asked_pause


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "Fri, 27 Nov 2026 08:00:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=240'}, 240),
        ({"retry-after": "1", "ratelimit": '"api";r=0;t=9'}, 1),
    ],
)
def test_what_the_hub_asks_for_is_read_from_its_headers(headers: dict[str, str], seconds: int) -> None:
    assert asked_pause(headers) == seconds


@pytest.mark.parametrize(
    ("answer", "failure", "again"),
    [
        ({"error": ["HfHubHTTPError", "OSError"], "message": "429", "status": 429, "headers": {"Retry-After": "9"}}, "unknown", 9),
        ({"error": ["HfHubHTTPError", "OSError"], "message": "502", "status": 502, "headers": {}}, "unknown", 0),
        ({"error": ["ReadTimeout", "TransportError"], "message": ""}, "unknown", 0),
        ({"error": ["HfHubHTTPError", "OSError"], "message": "418", "status": 418, "headers": {}}, "unknown", None),
        ({"error": ["GatedRepoError", "OSError"], "message": "403", "status": 403, "headers": {}}, "gated_model", None),
        ({"error": ["ValueError"], "message": "no"}, "unknown", None),
    ],
)  # fmt: skip
def test_what_may_be_asked_again(answer: dict[str, Any], failure: str, again: int | None) -> None:
    error = answered("org/model", {}, answer, "python3")
    assert (error.failure, getattr(error, "after", None)) == (failure, again)
    assert error.evidence  # without it a download would not be taken up


@pytest.mark.parametrize(
    ("token", "around", "expected"),
    [
        ("given", {}, ("given", None)),
        ("given", {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN": "other"}, ("given", None)),
        (None, {}, (None, "1")),  # otherwise the client takes the token file of the cache's user
        (None, {"HF_TOKEN": "exported"}, ("exported", None)),
    ],
)
def test_only_a_token_that_was_given_is_used(
    token: str | None, around: dict[str, str], expected: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    found = Client(token=token).environment(Path("/cache"), Path("/scratch"), xet=True)
    assert (found.get("HF_TOKEN"), found.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")) == expected
    assert (found["HF_HOME"], found["HF_XET_CACHE"]) == ("/cache", "/scratch")
