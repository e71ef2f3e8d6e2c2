# SPDX-License-Identifier: Apache-2.0
"""What the project reads of a container's log, from a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.engine

WORD = b"the guard ends it"
#: What was written to one stream late may have been written early: only each stream by itself is in order.
SCRIPT = f"""
echo 'serving'; echo 'No space left' >&2; sleep 0.2
echo '{WORD.decode()}'; sleep 0.2
echo 'late copied' >&2; sleep {{pause}}; echo '{WORD.decode()}' >&2
echo 'KeyboardInterrupt' >&2; echo 'shutting down'
sleep 60
"""
BEFORE = {b"serving", b"No space left", b"late copied"}


def read(engine: Any, ident: str) -> tuple[set[bytes], bool]:
    """Give the lines as a set: what was said to different streams at one moment may be in either order."""
    text, whole = engine.log_before(ident, WORD)
    return set(text.splitlines()), whole


@pytest.fixture
def said(engine: Any, docker_client: Any, standin_image: str) -> Iterator[Any]:
    """Start a container that says all that, and wait for a word of it."""
    made = []

    def until(text: bytes, pause: float = 0.2) -> str:
        words = ["sh", "-c", SCRIPT.format(pause=pause)]
        container = docker_client.containers.run(standin_image, words, detach=True, init=True)
        made.append(container)
        for chunk in container.logs(stream=True, follow=True):
            if text in chunk:
                break
        return str(container.id)

    yield until
    for container in made:
        container.remove(force=True)


def test_each_stream_is_read_up_to_the_word_in_it(engine: Any, said: Any) -> None:
    ident = said(b"shutting down")
    assert read(engine, ident) == (BEFORE, True)
    whole = engine.log(ident)
    assert whole.count(WORD) == 2
    assert b"KeyboardInterrupt" in whole


def test_a_stream_in_which_the_word_is_not_yet_is_told(engine: Any, said: Any) -> None:
    ident = said(b"late copied", pause=60)
    assert read(engine, ident) == (BEFORE, False)
