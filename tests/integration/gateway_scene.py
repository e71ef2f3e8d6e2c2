# SPDX-License-Identifier: Apache-2.0
"""Real HAProxys with the role's configuration on this machine, in front of servers of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import importlib.machinery
import importlib.util
import json
import random
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import haproxy_program
import play
import standin

from ansible.module_utils.vllm_fleet.gateway import drain, haproxy

ROLE = play.ROOT / "roles" / "gateway"
PROGRAM = haproxy_program.HERE
# Of this machine's administrator and this distribution's user; a test has neither.
FOREIGN = ("    log ", "    chroot ", "    user ", "    group ")
FILES = {"gateway.cfg.j2": "gateway.cfg", "secrets.cfg.j2": "secrets.cfg"}


@dataclass
class Gateway:
    """A running gateway. Its folder has the two files, `keys.map` and `haproxy.sock`."""

    folder: Path
    process: subprocess.Popen[bytes]
    ports: Mapping[str, int] = field(default_factory=dict)
    servers: Mapping[str, standin.Standin] = field(default_factory=dict)
    log: socket.socket | None = None

    @property
    def pid(self) -> str:
        """Process id of the worker."""
        return haproxy.info(haproxy.ask(self.socket, "show info"))["Pid"]

    @property
    def socket(self) -> str:
        return str(self.folder / "haproxy.sock")

    def entries(self) -> list[haproxy.Server]:
        """All servers, as HAProxy sees them."""
        return list(haproxy.servers(haproxy.ask(self.socket, "show stat")))

    def entry(self, pool: str) -> haproxy.Server:
        """A pool's first server."""
        return next(one for one in self.entries() if one.backend == pool)

    def left(self, pool: str) -> tuple[int, int]:
        """What is open at the gateway, and what the server itself counts."""
        return (
            drain.look_at_gateway(self.socket, pool, f"{pool}1").requests,
            drain.look_at_server(self.servers[pool].url).requests,
        )


def until(true: Callable[[], Any], what: str, seconds: float = 20.0) -> float:
    """Wait for something to become so; the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, f"never: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds, each with the next one; none that the kernel gives to a connection meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_000, 2)  # noqa: S311
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("", port))
            other.bind(("", port + 1))
            found.extend([port] * (port not in found))
    return found


def render(
    folder: Path,
    hosts: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    log: str = "",
    watching: Mapping[str, Any] | None = None,
    **variables: Any,
) -> None:
    """Write the role's files for this machine, as the role writes them: hosts of group vllm, variables of the role.

    HAProxy writes to ``log``, ADDRESS:PORT, or to none. ``watching`` are hosts of group monitoring.
    """
    common: dict[str, Any] = {
        "gateway_bind": "127.0.0.1",
        "gateway_request_timeout": 2,
        "gateway_check_interval": 1,
        # A busy machine answers late, and a server that is down for it is no fault.
        "gateway_check_timeout": 5,
        "gateway_check_fall": 2,
        **variables,
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    groups = {"vllm": {"hosts": hosts}, "gateway": {"hosts": {"gateway1": {}}}, "monitoring": {"hosts": watching or {}}}
    (folder / "inventory.yml").write_text(json.dumps({"all": {"vars": local, "children": groups}}))
    tasks: list[dict[str, Any]] = [
        {
            "name": "Judge",
            "ansible.builtin.assert": {
                "that": "__gateway_found.problems + __gateway_watching.problems == []",
                "fail_msg": "{{ __gateway_found.problems + __gateway_watching.problems }}",
                "quiet": True,
            },
        }
    ]
    contents = {
        f"{{{{ lookup('ansible.builtin.template', '{ROLE}/templates/{name}') }}}}": to for name, to in FILES.items()
    }
    for content, target in {**contents, "{{ __gateway_keys }}": "keys.map"}.items():
        copy = {"content": content, "dest": str(folder / target), "mode": "0600"}
        tasks.append({"name": "Write", "ansible.builtin.copy": copy, "no_log": True})
    places = {"socket": "haproxy.sock", "state_path": "state", "keys_path": "keys.map"}
    common |= {f"__gateway_{name}": str(folder / place) for name, place in places.items()}
    common["__gateway_alias_path"] = str(ROLE / "files" / "vllm-fleet-alias.lua")
    common["__gateway_usage_path"] = str(ROLE / "files" / "vllm-fleet-usage.lua")
    files_of = [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")]
    made = {"name": "Render", "hosts": "gateway", "gather_facts": False, "become": False}
    (folder / "play.yml").write_text(json.dumps([{**made, "vars_files": files_of, "tasks": tasks}]))
    environment = {**play.environment(), **(environ or {}), "ANSIBLE_FILTER_PLUGINS": str(ROLE / "filter_plugins")}
    words = [play.PLAYBOOK, "-i", folder / "inventory.yml", "-e", json.dumps(common), folder / "play.yml"]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env=environment, cwd=play.ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = folder / "gateway.cfg"
    text = config.read_text().replace("    log /dev/log", f"    log {log}" if log else "    log /dev/log")
    kept = [line for line in text.splitlines() if not line.startswith(FOREIGN) or (log and line.startswith("    log "))]
    config.write_text("\n".join(kept) + "\n")


def command(folder: Path, program: str = "here") -> list[str]:
    """What runs HAProxy with the files of a folder; ``program`` is one of haproxy_program.PROGRAMS."""
    files = ["-f", str(folder / "secrets.cfg"), "-f", str(folder / "gateway.cfg")]
    return [*haproxy_program.words(program, [folder, ROLE / "files"]), "-db", *files]


def check(folder: Path, program: str = "here") -> str:
    """Have HAProxy check the files of a folder, which must be good; what it says."""
    checked = subprocess.run([*command(folder, program), "-c"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return checked.stderr


def _not_up(gateway: Gateway) -> str:
    """Which servers are not up yet, with their last check; empty when all of them are."""
    assert gateway.process.poll() is None, (gateway.folder / "said").read_text()
    try:
        return ", ".join(str(one) for one in gateway.entries() if one.status != "UP" or not one.check)
    except haproxy.SocketError as error:
        return f"HAProxy {error}"


@contextlib.contextmanager
def running(
    folder: Path, *words: str, program: str = "here", state: str = "1\n", wait: bool = True, **more: Any
) -> Iterator[Gateway]:
    """HAProxy with the files of a folder, what was written down of its servers, and more ``words``.

    All servers are up, unless that is not waited for.
    """
    (folder / "state").write_text("1\n")
    # The lines about logs are taken out for a test; a name below .invalid is meant.
    said = check(folder, program).splitlines()
    warnings = [line for line in said if "WARNING" in line and "log format" not in line and ".invalid'" not in line]
    assert not warnings, warnings
    (folder / "state").write_text(state)
    with (folder / "said").open("w") as file:
        process = subprocess.Popen([*command(folder, program), *words], stdout=file, stderr=file)
    made = Gateway(folder, process, **more)
    try:
        # Servers come up by their first check that is answered in time; HAProxy asks on until then, or it has ended.
        began = time.monotonic()
        while wait and (left := _not_up(made)):
            assert time.monotonic() < began + 120, f"never: all servers are up: {left}"
            time.sleep(0.02)
        yield made
    finally:
        process.terminate()
        process.wait()


def service_helper(folder: Path) -> Any:
    """The program that haproxy.service calls, with places in a folder."""
    loader = importlib.machinery.SourceFileLoader("helper", str(ROLE / "files" / "vllm-fleet-gateway"))
    spec = importlib.util.spec_from_loader("helper", loader)
    assert spec
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    found.SOCKET, found.STATE, found.PROGRAM = str(folder / "haproxy.sock"), str(folder / "state"), PROGRAM
    found.CONFIGURATION = tuple(str(folder / name) for name in ("secrets.cfg", "gateway.cfg"))
    return found


def helper_program(folder: Path, program: str) -> str:
    """What that program runs to check configurations with one of haproxy_program.PROGRAMS."""
    script = folder / "haproxy"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(haproxy_program.words(program, [folder, ROLE / "files"]))} "$@"\n')
    script.chmod(0o700)
    return str(script)


def certificate(folder: Path) -> Path:
    """A certificate with its key, made for a folder."""
    both, key = folder / "both.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=gateway"
    subprocess.run(["openssl", *words.split(), "-keyout", key, "-out", both], check=True, stderr=subprocess.DEVNULL)
    both.write_text(both.read_text() + key.read_text())
    return both


def ask(
    port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, body and head of an answer. The path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path)
        for name, value in {"Content-Length": str(len(body or b"")), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def begin(port: int, key: str, **more: Any) -> socket.socket:
    """A client that has asked for a long answer and waits."""
    body = json.dumps({"messages": [{"role": "user", "content": "Write a poem."}], **more}).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}"
    )
    client.sendall(f"{head}\r\n\r\n".encode() + body)
    return client


def form(size: int) -> bytes:
    """An upload of sound."""
    parts = [
        b'form-data; name="model"\r\n\r\nacme/small',
        b'form-data; name="file"; filename="a.wav"\r\n\r\n' + b"\0" * size,
    ]
    return b"".join(b"--B\r\nContent-Disposition: " + part + b"\r\n" for part in parts) + b"--B--\r\n"


def said(size: int, **more: Any) -> bytes:
    """A chat of so many letters."""
    return json.dumps({"model": "acme/small", "messages": [{"role": "user", "content": "x" * size}], **more}).encode()


PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'iVBORw0K' * 20_000}"}}
SEEN = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE]}]
CHAT = "/v1/chat/completions"
#: The servers' key, and clients' own of every kind.
FLEET = "fleet-key-of-the-servers"
KEYS: list[dict[str, Any]] = [
    {"name": "all", "key": "key-of-all"},
    {"name": "small-only", "key": "key-of-small", "models": ["acme/small"]},
    {"name": "few", "key": "key-of-few", "requests_per_minute": 3},
    {"name": "one", "key": "key-of-one", "concurrent": 1},
]
#: Path, body, and whether it goes in chunks.
REQUESTS = {
    "short": (CHAT, said(10), False),
    "200 kB": (CHAT, said(200_000), False),
    "5 MB": (CHAT, said(5_000_000), False),
    "chunks": (CHAT, said(1000), True),
    "5 MB in chunks": (CHAT, said(5_000_000), True),
    "a picture": (CHAT, json.dumps({"model": "acme/small", "messages": SEEN}).encode(), False),
    "embeddings": ("/v1/embeddings", json.dumps({"model": "acme/small", "input": ["a", "b" * 9000]}).encode(), False),
    "responses": ("/v1/responses", json.dumps({"model": "acme/small", "input": SEEN}).encode(), False),
    "sound": ("/v1/audio/transcriptions", form(100_000), False),
    "much sound": ("/v1/audio/translations", form(5_000_000), True),
}


class Echo(http.server.ThreadingHTTPServer):
    """A server of one model that says what reached it. ``delay`` is what it takes for a chat; ``status`` its answer."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, name: str, *models: str, key: str = "", port: int = 0, bind: str = "127.0.0.1") -> None:
        self.name, self.models, self.key = name, models, key
        self.delay, self.status, self.chats = 0.0, 200, 0
        self.paths: list[str] = []
        #: Chunks of its next answers, instead of what reached it.
        self.parts: list[str] = []
        super().__init__((bind, port), EchoAnswer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Of a client that has gone."""

    @property
    def host(self) -> dict[str, Any]:
        """Its variables in group vllm."""
        given = {
            "vllm_server_model": self.models[0],
            "vllm_server_port": self.server_port,
            "vllm_server_bind": self.server_address[0],
        }
        given["vllm_server_args"] = {
            "served-model-name": list(self.models),
            "lora-modules": f"{self.name[:-1]}-lora=/x",
        }
        return {**given, "vllm_server_api_key": self.key} if self.key else given


@contextlib.contextmanager
def echoing(*echoes: Echo) -> Iterator[dict[str, Echo]]:
    """The servers by name, until the end."""
    try:
        yield {one.name: one for one in echoes}
    finally:
        for one in echoes:
            one.shutdown()
            one.server_close()


def journal() -> socket.socket:
    """What a gateway writes its log to."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    made.settimeout(10)
    return made


def forget(gateway: Gateway) -> None:
    """Read what is there: a full buffer takes no further line."""
    assert gateway.log
    gateway.log.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while gateway.log.recv(65536):
            pass
    gateway.log.settimeout(10)


def logged(gateway: Gateway, count: int, path: str) -> list[str]:
    """The next lines of requests for paths that begin so, without what syslog has before them."""
    assert gateway.log
    found: list[str] = []
    while len(found) < count:
        line = gateway.log.recv(65536).decode().strip()
        # Those of requests before may come late.
        found.extend([line.partition("]: ")[2]] * (f" {path}" in line))
    return found


class EchoAnswer(http.server.BaseHTTPRequestHandler):
    """Of an Echo."""

    server: Echo
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.say(200, {})
        elif self.path.startswith("/v1") and self.headers["authorization"] != f"Bearer {self.server.key or 'none'}":
            self.say(401, {"error": "Unauthorized"})
        elif self.path == "/v1/models" and self.command == "GET":
            self.say(200, {"data": [{"id": name} for name in self.server.models]})
        else:
            body = self.body()
            self.server.chats += 1
            self.server.paths.append(self.path)
            time.sleep(self.server.delay)
            told = {
                "server": self.server.name,
                "path": self.path,
                "size": len(body),
                "model": self.headers["x-vllm-model"],
            }
            told["sha256"] = hashlib.sha256(body).hexdigest()
            told["usage"] = {"prompt_tokens": 11, "total_tokens": 18, "completion_tokens": 7, "details": {"cached": 1}}
            if self.server.parts:
                self.stream(self.server.parts)
            else:
                self.say(self.server.status, told)

    do_POST = do_DELETE = do_GET

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def stream(self, parts: list[str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            self.wfile.write(f"{len(part.encode()):x}\r\n{part}\r\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def say(self, status: int, told: Any) -> None:
        text = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
