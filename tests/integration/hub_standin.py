# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Hub over HTTP, and a real huggingface_hub to read with what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from fake_hf_cache import COMMIT, REPO, XET, blob_name, git_sha1

SEED = Path(__file__).resolve().parents[2] / "scripts" / "seed_smollm2" / "seed.py"
CANARY = "hf_canary_7d1e"


def hub_python_of() -> str:
    """A Python with the pinned huggingface_hub: the environment that the seed's converter has anyway."""
    done = subprocess.run([sys.executable, SEED, "--print-python"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def hub_reads(hub_python: str, cache: Path, repo_id: str = REPO, revision: str = "main") -> Path:
    """Resolve a snapshot offline by huggingface_hub; an error of it fails the test with its text."""
    script = (
        "import sys; from huggingface_hub import snapshot_download;"
        "print(snapshot_download(sys.argv[1], revision=sys.argv[2], local_files_only=True))"
    )
    environment = {"PATH": os.environ["PATH"], "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [hub_python, "-c", script, repo_id, revision], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


class Hub(ThreadingHTTPServer):
    """The part of the Hub's HTTP that a pinned download uses, over one model in memory, with a token required.

    `trouble` holds for a file what becomes of the next requests for it: 429, stall (half of it, then nothing until
    `release` is set) or drop (half of it, then the connection ends); for the file list, under the name `listing`: 429,
    503 or stall (no answer). `callers` are the addresses that asked.
    With `xet`, large files are told to lie in Xet's storage, whose server takes every question and never answers;
    `asked_xet` are the questions.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), HubHandler)
        self.files, self.gets = files, cast("list[str]", [])
        self.trouble: dict[str, list[str]] = {}
        self.callers: list[str] = []
        self.release = threading.Event()
        self.xet = False
        self.asked_xet: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:  # noqa: PLR0911 - one return an answer
        path = self.path.split("?")[0]
        self.server.callers.append(self.client_address[0])
        if path.startswith("/cas/"):
            self.server.asked_xet.append(path)
            self.server.release.wait(60)
            self.close_connection = True
            return None
        if not path.startswith((f"/api/models/{REPO}", f"/{REPO}/")):
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if self.headers.get("Authorization") != f"Bearer {CANARY}":
            return self.answer(401, b"{}", X_Error_Code="GatedRepo")
        listing = [self.entry(name, content) for name, content in self.server.files.items()]
        if path.startswith(f"/api/models/{REPO}/revision/"):
            if path.rsplit("/", 1)[1] not in ("main", COMMIT):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            if trouble := self.server.trouble.get("listing"):
                return self.misbehave(trouble.pop(0), "listing", b"")
            siblings = [
                {"rfilename": item["path"], "size": item["size"], "blobId": item["oid"]}
                | ({"lfs": item["lfs"] | {"sha256": item["lfs"]["oid"]}} if "lfs" in item else {})
                for item in listing
            ]
            return self.json({"id": REPO, "sha": COMMIT, "siblings": siblings})
        if path.startswith(f"/api/models/{REPO}/xet-read-token/"):
            until, storage = str(int(time.time()) + 3600), f"{self.server.url}/cas"
            return self.answer(
                200, b"{}", X_Xet_Cas_Url=storage, X_Xet_Access_Token="xet", X_Xet_Token_Expiration=until
            )
        if path.startswith(f"/api/models/{REPO}/tree/"):
            return self.json(listing)
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in self.server.files:
            known = path.startswith(f"/{REPO}/resolve/{COMMIT}/")
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound" if known else "RevisionNotFound")
        content = self.server.files[name]
        if self.command == "GET":
            if trouble := self.server.trouble.get(name):
                return self.misbehave(trouble.pop(0), name, content)
            self.server.gets.append(name)
        more = {}
        if self.server.xet and name.endswith(".safetensors"):
            route = f"{self.server.url}/api/models/{REPO}/xet-read-token/{COMMIT}"
            more = {"X_Xet_Hash": XET, "X_Xet_Refresh_Route": route}
        return self.answer(
            200,
            content,
            **more,
            Content_Length=str(len(content)),
            ETag=f'"{blob_name(name, content)}"',
            X_Repo_Commit=COMMIT,
        )

    def misbehave(self, how: str, name: str, content: bytes) -> None:
        if how == "429":
            return self.answer(429, b"{}", Retry_After="1", RateLimit='"api";r=0;t=1')
        if how == "503":
            return self.answer(503, b"{}")
        if name == "listing":
            self.server.release.wait(60)
            self.close_connection = True
            return None
        self.send_response(200)
        for header, value in (("Content-Length", str(len(content))), ("ETag", f'"{blob_name(name, content)}"')):
            self.send_header(header, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if how == "stall":
            self.server.release.wait(60)
        self.close_connection = True
        return None

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": blob_name(name, content), "size": len(content), "pointerSize": 130}
        return entry
