# SPDX-License-Identifier: Apache-2.0
"""Nothing that the project starts or asks is waited for without a limit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    *(
        "action_plugins",
        "callback_plugins",
        "filter_plugins",
        "inventory_plugins",
        "fleet_report",
        "library",
        "module_utils",
    ),
    *("plugin_utils", "roles", "scripts"),
)
#: Calls that wait and take a limit by this name, by the last two words of what is called.
TIMED = frozenset(
    (
        *("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"),
        *("request.urlopen", "urlopen", "open_url", "socket.create_connection", "create_connection"),
        *("client.HTTPConnection", "client.HTTPSConnection", "HTTPConnection", "HTTPSConnection"),
    )
)
#: Methods that wait for ever where they are given nothing.
BARE = frozenset(("wait", "communicate", "join"))
#: What asks a socket to wait.
WAITS = frozenset(("connect", "recv", "accept", "recv_into", "recvfrom"))
#: Where one waits without a limit, and why it may.
MAY = {
    ("module_utils/vllm_fleet/watchdog/resident.py", "self._child.wait()"): "it was killed in the line before",
    ("module_utils/vllm_fleet/weights/hub.py", "process.communicate()"): "it was killed in the line before",
    ("plugin_utils/become_pipe.py", "process.wait()"): "rsync's stream, which rsync itself limits; or it was killed",
    ("action_plugins/push_files.py", "teller.join()"): "it ends with its event",
    ("module_utils/vllm_fleet/replica/live.py", "self._listener.join()"): "it looks at its end, or wakes over SSH",
    ("plugin_utils/become_pipe.py", "errors.join()"): "the end of a program that has ended",
    ("module_utils/vllm_fleet/replica/network.py", "os.wait()"): "the child forks once and ends",
    ("module_utils/vllm_fleet/weights/swarm.py", "probe.connect((target, 9))"): "UDP sends nothing to connect",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and (path.suffix == ".py" or (not path.suffix and _python(path))):
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _python(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.readline()
    return head.startswith(b"#!") and b"python" in head


def _name(call: ast.Call) -> tuple[str, str]:
    words = ast.unparse(call.func).split(".")
    return ".".join(words[-2:]), words[-1] if len(words) > 1 else ""


def unlimited(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Give line and text of each wait without a limit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name, method = _name(node)
            given = {word.arg for word in node.keywords}
            if name in TIMED and not given & {"timeout", None}:
                yield node.lineno, ast.unparse(node)
            if method in BARE and not node.args and not given:
                yield node.lineno, ast.unparse(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _sockets(node)


def _sockets(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    """A socket that is made here, waits here, and was given no limit here."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    if not any(_name(call)[0] == "socket.socket" for call in calls):
        return
    if any(_name(call)[1] in ("settimeout", "setblocking") for call in calls):
        return
    yield from ((call.lineno, ast.unparse(call)) for call in calls if _name(call)[1] in WAITS)


#: Files of caches, which others may write, are read by common/received.py, with these exceptions. Presets are the inventory's.
OTHERS = ("module_utils/vllm_fleet/weights", "module_utils/vllm_fleet/models")
OWN = {
    ("models/checkpoint.py", "json.loads(str(flags.get('hf-overrides') or '{}'))"): "the inventory's",
    ("weights/hub.py", "json.loads(stdout.strip().splitlines()[-1])"): "as the download's script wrote it",
    ("weights/prewarm.py", "Path(path).read_text(encoding='utf-8', errors='replace')"): "of /proc",
    ("weights/swarm.py", "settings.torrent.read_bytes()"): "in root's folder",
    ("weights/swarm.py", "json.loads((settings.run / 'state.json').read_text(encoding='ascii'))"): "in root's folder",
    ("weights/swarm.py", "(settings.run / 'state.json').read_text(encoding='ascii')"): "in root's folder",
}


def test_what_others_may_have_written_is_read_with_a_limit():
    found = {
        (path.removeprefix("module_utils/vllm_fleet/"), ast.unparse(node))
        for path, tree in sources()
        if path.startswith(OTHERS) and not path.endswith("/preset_files.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and _name(node)[0].endswith(("json.loads", "json.load", "read_text", "read_bytes"))
    }
    assert found == OWN.keys()


def test_every_program_and_every_socket_has_a_limit():
    found = {(name, text): line for name, tree in sources() for line, text in unlimited(tree)}
    assert len(list(sources())) > 150
    assert [f"{name}:{line}: {text}" for (name, text), line in found.items() if (name, text) not in MAY] == []
    assert MAY.keys() <= found.keys(), "an exception that nothing needs any more"


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(['x'], check=False)",
        "run = subprocess.check_output('x')",
        "urllib.request.urlopen(url)",
        "http.client.HTTPConnection(host, 80)",
        "socket.create_connection((host, 80))",
        "child.wait()",
        "child.communicate()",
        "def f():\n    with socket.socket() as link:\n        link.connect(place)",
    ],
)
def test_a_wait_without_a_limit_is_found(line):
    assert len(list(unlimited(ast.parse(line)))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(['x'], check=False, timeout=3)",
        "subprocess.run(['x'], **given)",
        "child.wait(3)",
        "', '.join(words)",
        "def f():\n    link = socket.socket()\n    link.settimeout(3)\n    link.connect(place)",
        "def f():\n    socket.socket().bind(place)",
    ],
)
def test_a_wait_with_a_limit_is_not(line):
    assert list(unlimited(ast.parse(line))) == []
