# SPDX-License-Identifier: Apache-2.0
"""Run on a node or gateway by its Python, from standard input: what is there, in one line of JSON.

The action vllm_health sends this file with what is asked. No module is copied and no file is left: a fleet is to answer
within seconds, and a module's start takes a node longer than all of this. Nothing changes, and nothing is judged here.
Standard library alone.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from typing import Any

MARK = "vllm-fleet-health "
#: Bytes that are read of an answer or a file, and characters of a reason that are handed on.
MOST, REASON = 1 << 20, 200
SYSTEMD = "/run/systemd/system"
UNIT = r"system.slice/system-vllm\x2dfleet\x2dwatchdog.slice/vllm-fleet-watchdog@{name}.service"
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd")


class Unix(http.client.HTTPConnection):
    """HTTP over a socket of this machine."""

    def __init__(self, path: str, timeout: float) -> None:
        """Nothing is opened yet."""
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Open it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def said(error: BaseException) -> str:
    """Return an error in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens"
    return (str(getattr(error, "strerror", "") or error) or type(error).__name__)[:REASON]


def read(path: str) -> str | None:
    """Return a file's text; None where there is none that can be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  quicker than pathlib's import
            return file.read(MOST)
    except OSError:
        return None


def container(asked: dict[str, Any]) -> dict[str, Any]:
    """Return Docker's `status` of the container, empty for none, or `trouble`."""
    connection = Unix(asked["docker"], 3.0)
    try:
        connection.request("GET", f"/containers/{asked['name']}/json")
        answer = connection.getresponse()
        body = json.loads(answer.read(MOST))
        if answer.status == 404:
            return {"status": ""}
        if answer.status != 200:
            return {"trouble": str(body.get("message"))[:REASON]}
        state = body["State"]
        return {"status": str(state.get("Status")), "started_at": str(state.get("StartedAt"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as error:
        return {"trouble": said(error)}
    finally:
        connection.close()


#: The least that a model can be asked, by API. One without a chat template is asked to go on; one that writes nothing,
#: for a vector or a score.
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"max_tokens": 1, "messages": [{"role": "user", "content": "Say OK."}]},
    "/v1/completions": {"max_tokens": 1, "prompt": "Say OK."},
    "/v1/embeddings": {"input": "Say OK."},
    "/v1/rerank": {"query": "Say OK.", "documents": ["OK"]},
}
#: What a server says of an API that its model does not have.
NOT_THIS = (400, 404, 501)


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask for the least: `code` and `seconds`, or `trouble`."""
    found: dict[str, Any] = {}
    for path, body in LEAST.items():
        one = ask(asked, path, body)
        other = one.get("code") in NOT_THIS
        if not other or "max_tokens" in body:
            found = one
        if not other:
            break
    return found


def ask(asked: dict[str, Any], path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one request."""
    headers = {"Content-Type": "application/json"}
    if asked["key"]:
        headers["Authorization"] = f"Bearer {asked['key']}"
    connection = http.client.HTTPConnection(asked["host"], asked["port"], timeout=asked["timeout"])
    began = time.monotonic()
    try:
        connection.request("POST", path, json.dumps({"model": asked["model"], **body}), headers)
        reply = connection.getresponse()
        text = reply.read(MOST)
        found: dict[str, Any] = {"code": reply.status, "seconds": time.monotonic() - began}
        if reply.status != 200:
            found["trouble"] = text[:REASON].decode("utf-8", "replace")
        else:
            data = json.loads(text)
            if not (data.get("choices") or data.get("data") or data.get("results")):
                found["trouble"] = "an answer without choices"
        return found
    except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
        return {"trouble": said(error)}
    finally:
        connection.close()


def watchdog(asked: dict[str, Any]) -> dict[str, Any]:
    """Return whether the node has systemd, whether the watchdog runs, and the text of its state."""
    name = asked["name"]
    return {
        "systemd": os.path.isdir(SYSTEMD),  # noqa: PTH112  likewise
        "runs": any(os.path.isdir(f"{tree}/{UNIT.format(name=name)}") for tree in CGROUPS),  # noqa: PTH112  likewise
        "state": read(f"/run/vllm-fleet/{name}/watchdog.json"),
        "now": time.time(),
    }


def gateway(asked: dict[str, Any]) -> dict[str, Any]:
    """Return HAProxy's `table`, or `trouble`."""
    text = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(asked["timeout"])
            connection.connect(asked["socket"])
            connection.sendall(b"show stat\n")
            while len(text) < MOST and (part := connection.recv(65536)):
                text += part
    except FileNotFoundError:
        return {"trouble": "does not run"}
    except OSError as error:
        return {"trouble": said(error)}
    return {"table": text.decode("utf-8", "replace")}


def main(given: str) -> None:
    """Look, and print what was found."""
    asked = json.loads(given)
    if asked["kind"] == "gateway":
        found = gateway(asked)
    else:
        found = {"note": read(f"{asked['state_dir']}/{asked['name']}/maintenance.json"), "container": container(asked)}
        if asked["port"] and not found["note"]:
            found["answer"] = answer(asked)
        found["watchdog"] = watchdog(asked)
    print(MARK + json.dumps(found), flush=True)  # the action reads it
