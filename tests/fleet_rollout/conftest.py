# SPDX-License-Identifier: Apache-2.0
"""One fleet for all tests of this folder. One that molecule has made is used and left, otherwise it is made here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scene import Scene

NOTES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The fleet, first deployment done."""
    given = os.environ.get("VLLM_FLEET_SCENE")
    made = Scene(os.environ.get("VLLM_FLEET_SCENE_NAME") or "rollout", Path(given or tmp_path_factory.mktemp("scene")))
    try:
        if not given:
            made.up()
            made.deploy().ok()
        yield made
    finally:
        if not given:
            made.down()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Keeps a line for the end of the run: figures that its reader wants to see, passed or not."""
    notes = request.config.stash.setdefault(NOTES, [])
    return lambda line: notes.append(f"{request.node.name}: {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(NOTES, []):
        terminalreporter.write_line(line)
