# SPDX-License-Identifier: Apache-2.0
"""The HTTP side: paths, status codes, bodies and streams as vLLM 0.32.0 has them, over the standard library."""

from __future__ import annotations

import argparse
import hmac
import itertools
import json
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standin_vllm import VERSION
from standin_vllm.answers import NONSENSE, answer, tokens
from standin_vllm.behaviour import Behaviour
from standin_vllm.log import Log
from standin_vllm.startup import max_model_len

# Seconds between two looks whether a client still waits.
LOOK = 0.05
# vLLM 0.32.0 entrypoints/serve/middleware/authenticate.py: everything else needs no key.
GUARDED = ("/v1", "/v2", "/inference", "/cohere")
DOCS = '<!DOCTYPE html><html><head><title>FastAPI - Swagger UI</title></head><body id="swagger-ui"></body></html>'


class RefusedError(Exception):
    """An answer other than 200, in the shape of an OpenAI error."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        """`kind` is the error's type, `param` the field of the request that is at fault."""
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class AbortedError(Exception):
    """The server goes down, or the client goes away, while a request runs."""


def _left(client: socket.socket) -> bool:
    """Whether a client has closed its connection, or its half of it: to vLLM's uvicorn both mean that it has gone."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Traffic:
    """Counts requests: at most `slots` run at a time, the others wait, all of it shows in /metrics."""

    def __init__(self, slots: int) -> None:
        """`slots` is --max-num-seqs."""
        self._changed = threading.Condition()
        self._slots = slots
        self._abort = False
        self.running = self.waiting = self.finished = self.prompt_tokens = self.generation_tokens = self.steps = 0
        self.draining = False
        self._shown: dict[str, int] | None = None
        #: What is shown during a long step, and the step itself: one at a time.
        self._before: dict[str, int] | None = None
        self._step = threading.Lock()

    @property
    def shown(self) -> dict[str, int]:
        """What /metrics shows; of an engine that was stopped, what it showed then."""
        names = ("running", "waiting", "finished", "prompt_tokens", "generation_tokens", "steps")
        return self._shown or self._before or {name: getattr(self, name) for name in names}

    def stop(self) -> None:
        """Stand still, as an engine process after SIGSTOP: nothing moves, and the HTTP side goes on."""
        with self._changed:
            self._shown = self.shown

    def go_on(self) -> None:
        """Move again, as after SIGCONT."""
        with self._changed:
            self._shown = None
            self._changed.notify_all()

    @contextmanager
    def request(self, client: socket.socket) -> Iterator[None]:
        """A place among the running, waited for. `client` is who waits for the answer."""
        with self._changed:
            self.waiting += 1
            try:
                self._wait_for(client, lambda: self.running < self._slots, None)
            finally:
                self.waiting -= 1
            self.running += 1
        try:
            yield
        finally:
            with self._changed:
                self.running -= 1
                self.finished += 1
                self._changed.notify_all()

    def pause(self, client: socket.socket, seconds: float | None) -> None:
        """Let time pass inside a request (None: for ever); raises AbortedError when the server or the client goes."""
        with self._changed:
            self._wait_for(client, lambda: False, seconds)

    def _wait_for(self, client: socket.socket, true: Callable[[], bool], seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        while not (self._abort or _left(client)):
            if self._shown is None and true():
                return
            left = LOOK if end is None or self._shown else min(LOOK, end - time.monotonic())
            if left <= 0:
                return
            self._changed.wait(left)
        if self._shown or not true():
            raise AbortedError

    def prefill(self, client: socket.socket, tokens: int, seconds: float) -> None:
        """Take a prompt in one step, during which nothing else moves, and count it at its end."""
        if seconds:
            with self._step:
                self._before = self.shown
                try:
                    self.pause(client, seconds)
                finally:
                    self._before = None
        with self._changed:
            self.prompt_tokens += tokens
            self.steps += bool(seconds)

    def count_token(self) -> None:
        """Count one token of an answer, and the step that made it."""
        with self._step, self._changed:
            self.generation_tokens += 1
            self.steps += 1

    def drain(self, seconds: float) -> None:
        """Wait for the running requests, at most `seconds`, then abort what is left."""
        with self._changed:
            self.draining = True
            self._changed.wait_for(lambda: self.running + self.waiting == 0, seconds)
            self._abort = True
            self._changed.notify_all()
            # The aborted ones close their connections before the process ends.
            self._changed.wait_for(lambda: self.running + self.waiting == 0, 1)


class Server(ThreadingHTTPServer):
    """Binds its port when made and listens from `start` on: until then a client is refused, as with vLLM."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace, behaviour: Behaviour, log: Log) -> None:
        """Bind; OSError when somebody listens on the port."""
        self.address_family = socket.AF_INET6 if ":" in (options.host or "") else socket.AF_INET
        super().__init__((options.host or "", options.port), Handler, bind_and_activate=False)
        self.behaviour = behaviour
        self.log = log
        self.model = options.model
        self.max_model_len = max_model_len(options)
        self.names = [behaviour.serve_model] if behaviour.serve_model else options.served_model_name or [options.model]
        #: LoRA adapters by name. vLLM reads their files here; that is for the real one.
        self.adapters = dict(module.partition("=")[::2] for module in options.lora_modules or ())
        self.keys = options.api_key or [key for key in (os.environ.get("VLLM_API_KEY"),) if key]
        self.traffic = Traffic(options.max_num_seqs)
        #: What /standin/leak and /standin/slow have ordered: errors, and seconds before each answer.
        self.leaky, self.slow, self._asked = False, 0.0, itertools.count()
        self.statistics = not options.disable_log_stats
        # Not HTTPServer.server_bind: it asks the resolver for the host's full name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = options.host or "localhost", self.socket.getsockname()[1]

    def start(self, address: str) -> None:
        """Listen, and serve in the background."""
        self.log.line("api", "launcher.py:186", "Available routes are:")
        for path, methods in ROUTES:
            self.log.line("api", "launcher.py:195", f"Route: {path}, Methods: {methods}")
        self.log.err(f"INFO:     Started server process [{os.getpid()}]")
        self.log.err("INFO:     Waiting for application startup.")
        self.server_activate()
        threading.Thread(target=self.serve_forever, name=address, daemon=True).start()
        self.log.err("INFO:     Application startup complete.")

    @property
    def leaks(self) -> bool:
        """Whether this request ends with an error: of a server that was told to leak errors, every third one."""
        return self.leaky and next(self._asked) % 3 == 0

    def order(self, word: str, body: bytes) -> bool:
        """Change the behaviour while it serves; False for a word that is none."""
        orders: dict[str, Callable[[], None]] = {"stop": self.traffic.stop, "go_on": self.traffic.go_on}
        if word in orders:
            orders[word]()
        elif word == "leak":
            self.leaky = True
        elif word == "slow":
            self.slow = float(body)
        else:
            return False
        return True

    def shut_down(self, timeout: float) -> None:
        """Drain for `timeout` seconds, abort the rest, close the port."""
        self.traffic.drain(timeout)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "uvicorn", ""
    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """The access log of uvicorn."""
        status = HTTPStatus(int(code))
        client = "{}:{}".format(*self.client_address[:2])
        self.server.log.out(f'INFO:     {client} - "{self.requestline}" {status.value} {status.phrase}')

    def do_GET(self) -> None:
        """Everything that is asked without a body."""
        if not self._authorised():
            return
        path = self.path.partition("?")[0]
        if path in ("/health", "/ping"):
            self._send(503 if self.server.behaviour.never_healthy else 200, b"", None)
        elif path == "/v1/models":
            self._send_json(
                200, {"object": "list", "data": [*map(self._model_card, (*self.server.names, *self.server.adapters))]}
            )
        elif path == "/version":
            self._send_json(200, {"version": VERSION})
        elif path == "/load":
            self._send_json(200, {"server_load": self.server.traffic.running + self.server.traffic.waiting})
        elif path == "/metrics":
            self._send(200, self._metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path in ("/docs", "/redoc"):
            self._send(200, DOCS.encode(), "text/html; charset=utf-8")
        elif path == "/openapi.json":
            self._send_json(200, {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": VERSION}, "paths": {}})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self._send_json(405, {"detail": "Method Not Allowed"})
        else:
            self._send_json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        """Completions, and /ping."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/ping":
            self.do_GET()
            return
        if self.server.behaviour.control and path.startswith("/standin/"):
            self._send(200 if self.server.order(path.rpartition("/")[2], body) else 404, b"", None)
            return
        if not self._authorised():
            return
        if path == "/v1/unload_lora_adapter" and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
            self.server.adapters.pop(json.loads(body)["lora_name"])
            self._send(200, b"Success", "text/plain")
            return
        if path not in ("/v1/chat/completions", "/v1/completions", "/invocations"):
            self._send_json(404, {"detail": "Not Found"})
            return
        try:
            if self.server.leaks:
                raise RefusedError(500, "InternalServerError", "made to leak")
            completion = Completion(self.server, body, chat=path != "/v1/completions")
            with self.server.traffic.request(self.connection):
                self._complete(completion)
        except RefusedError as refused:
            self._send_json(refused.status, refused.body)
        except AbortedError:
            self.close_connection = True

    def _authorised(self) -> bool:
        if not self.server.keys or not self.path.startswith(GUARDED):
            return True
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and any(hmac.compare_digest(key.encode(), k.encode()) for k in self.server.keys):
            return True
        self._send_json(401, {"error": "Unauthorized"})
        return False

    def _complete(self, completion: Completion) -> None:
        server, behaviour = self.server, self.server.behaviour
        steps = completion.prompt_tokens // 100
        server.traffic.prefill(self.connection, completion.prompt_tokens, behaviour.prompt_delay * steps)
        if server.slow:
            server.traffic.pause(self.connection, server.slow)
        if behaviour.hang_request == "1":
            server.traffic.pause(self.connection, None)
        if not completion.stream:
            for _ in completion.words:
                server.traffic.pause(self.connection, behaviour.token_delay)
                server.traffic.count_token()
            body = json.dumps(completion.whole()).encode()
            if behaviour.drop_stream:
                self._send(200, body[: len(body) // 2], "application/json", length=len(body))
                self._drop()
                return
            self._send(200, body, "application/json")
        else:
            self._stream(completion)

    def _stream(self, completion: Completion) -> None:
        behaviour, traffic = self.server.behaviour, self.server.traffic
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        half = len(completion.words) // 2
        for number, chunk in enumerate(completion.chunks()):
            self._event(json.dumps(chunk))
            if number > half and behaviour.drop_stream:
                self._drop()
                return
            if number > half and behaviour.hang_request == "stream":
                traffic.pause(self.connection, None)
            traffic.pause(self.connection, behaviour.token_delay)
            if completion.first <= number < completion.first + len(completion.words):
                traffic.count_token()
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def _drop(self) -> None:
        """End the connection in the middle: with RST when ordered so, with FIN otherwise."""
        self.close_connection = True
        if self.server.behaviour.drop_stream == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.close()
            self.rfile.close()
            self.connection.close()

    def _send_json(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str | None, length: int | None = None) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _model_card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "root": self.server.adapters.get(name, self.server.model),
            "parent": self.server.names[0] if name in self.server.adapters else None,
            "max_model_len": self.server.max_model_len,
            "permission": [],
        }

    def _metrics(self) -> str:
        if not self.server.statistics:
            return "# HELP http_requests_total Total number of requests.\nhttp_requests_total 7.0\n"
        shown = self.server.traffic.shown
        rows = (
            ("num_requests_running", "gauge", "Number of requests in model execution batches.", shown["running"]),
            ("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", shown["waiting"]),
            (
                "kv_cache_usage_perc",
                "gauge",
                "KV-cache usage. 1 means 100 percent usage.",
                min(1, shown["running"] / 100),
            ),
            ("prompt_tokens_total", "counter", "Number of prefill tokens processed.", shown["prompt_tokens"]),
            (
                "generation_tokens_total",
                "counter",
                "Number of generation tokens processed.",
                shown["generation_tokens"],
            ),
            ("request_success_total", "counter", "Count of successfully processed requests.", shown["finished"]),
            ("iteration_tokens_total_count", "counter", "Steps of the engine.", shown["steps"]),
        )
        label = f'{{engine="0",model_name="{self.server.names[0]}"}}'
        return "".join(
            f"# HELP vllm:{name} {text}\n# TYPE vllm:{name} {kind}\nvllm:{name}{label} {float(value)}\n"
            for name, kind, text, value in rows
        )


ROUTES = (
    ("/openapi.json", "GET, HEAD"),
    ("/docs", "GET, HEAD"),
    ("/redoc", "GET, HEAD"),
    ("/load", "GET"),
    ("/version", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
    ("/v1/models", "GET"),
    ("/ping", "GET"),
    ("/ping", "POST"),
    ("/invocations", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
)


class Completion:
    """One request and its answer: read, checked and cut to max_tokens."""

    def __init__(self, server: Server, body: bytes, *, chat: bool) -> None:
        """Raises RefusedError on what vLLM refuses."""
        if server.traffic.draining:
            # Measured: the port stays open and /health says 200, and this is what a new request gets.
            raise RefusedError(500, "InternalServerError", "cannot schedule new futures after shutdown")
        try:
            request = json.loads(body)
            messages = request["messages"] if chat else [{"content": request["prompt"]}]
            prompt = str(messages[-1]["content"])
            words = sum(len(tokens(str(message["content"]))) for message in messages)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RefusedError(400, "BadRequestError", f"Cannot read the request: {error!r}") from error
        wanted = request.get("model")
        if wanted and wanted not in (*server.names, *server.adapters):
            message = f"The model `{wanted}` does not exist. Valid aliases: {', '.join(server.names)}."
            raise RefusedError(404, "NotFoundError", message, "model")
        # A chat template adds some tokens of its own; /v1/completions generates 16 tokens unless told otherwise.
        self.prompt_tokens = max(1, words + (10 if chat else 0))
        if self.prompt_tokens >= server.max_model_len:
            message = (
                f"This model's maximum context length is {server.max_model_len} tokens. However, your prompt contains "
                f"{self.prompt_tokens} input tokens, which exceeds this limit even without any output tokens. "
                f"Please reduce the length of the input prompt. (parameter=input_tokens, value={self.prompt_tokens})"
            )
            raise RefusedError(400, "BadRequestError", message, "input_tokens")
        limit = request.get("max_completion_tokens") or request.get("max_tokens", None if chat else 16)
        if limit is not None and limit < 1:
            raise RefusedError(400, "BadRequestError", f"max_tokens must be at least 1, got {limit}.", "max_tokens")
        if limit is not None and limit > server.max_model_len:
            message = (
                f"max_tokens={limit} cannot be greater than max_model_len={server.max_model_len}. "
                f"Please request fewer output tokens. (parameter=max_tokens, value={limit})"
            )
            raise RefusedError(400, "BadRequestError", message, "max_tokens")
        limit = min(limit or server.max_model_len, server.max_model_len - self.prompt_tokens)

        behaviour = server.behaviour
        text = "" if behaviour.empty else NONSENSE if behaviour.nonsense else answer(prompt, behaviour.wrong_share)
        everything = tokens(text)
        self.words = everything[:limit]
        self.finish_reason = "length" if len(everything) >= limit else "stop"
        self.stream = bool(request.get("stream"))
        #: Number of the event with the first word.
        self.first = 1 if chat else 0
        self._with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        self._chat = chat
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": wanted if wanted in server.adapters else server.names[0],
        }

    def _usage(self) -> dict[str, Any]:
        # The end-of-sequence token is generated and counted, though never shown.
        generated = len(self.words) + (self.finish_reason == "stop")
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + generated,
            "completion_tokens": generated,
            "prompt_tokens_details": None,
        }

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        text = "".join(self.words)
        shape = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [{"index": 0, **shape, "logprobs": None, "finish_reason": self.finish_reason}],
            "usage": self._usage(),
        }

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, without the closing [DONE]."""
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}

        def chunk(shape: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, **shape, "logprobs": None, "finish_reason": finish_reason}]}

        if self._chat:
            yield chunk({"delta": {"role": "assistant", "content": ""}}, None)
        for word in self.words:
            yield chunk({"delta": {"content": word}} if self._chat else {"text": word}, None)
        yield chunk({"delta": {"content": ""}} if self._chat else {"text": ""}, self.finish_reason)
        if self._with_usage:
            yield {**head, "choices": [], "usage": self._usage()}
