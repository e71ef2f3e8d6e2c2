# SPDX-License-Identifier: Apache-2.0
"""HAProxy's runtime socket: questions and what their answers mean.

Commands and columns: HAProxy management guide 2.6 and 3.0, "show stat" (CSV, one line a server) and "show info".
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import generations

# The socket is local and its process never busy for long; a stopped process accepts and does not answer.
TIMEOUT = 5.0
# Between two looks at what it has not done yet.
PAUSE = 0.02
# Lines of the CSV that are totals, not servers.
TOTALS = ("FRONTEND", "BACKEND")
WATCHING = "vllm-fleet-monitoring"
# Lines of a map that are given at a time: the smallest buffer has 16 kB, a line of many models perhaps 1 kB.
CHUNK = 10
_UP = "UP"  # with the checks that failed behind it, while these are too few
# Behind a status that the server's agent has made; what an agent that does not answer has said.
_AGENT, NO_ANSWER = "(agent)", "no answer"
# What the configuration of the role gateway calls itself, before its version.
DESCRIPTION, VERSION = "vllm-fleet ", "@version@"


class SocketError(Exception):
    """HAProxy could not be asked. The message says why, in words that follow `HAProxy ...`."""


@dataclass(frozen=True)
class Server:
    """One server of one backend as the gateway sees it.

    `check` is the last health check in HAProxy's words, `address` is ADDRESS:PORT, empty while HAProxy has none for it.
    `agent` is what the server's watchdog said last: `up`, `down` with its reason, NO_ANSWER; empty without one.
    Since HAProxy's last start or reload: `answered` requests with any response, `errors` of them with 5xx, a broken
    answer or none; `response` is how many milliseconds the last 1024 had to wait for the first byte, on average.
    """

    backend: str
    name: str
    status: str
    sessions: int
    queue: int
    requests: int
    check: str
    seconds: int
    address: str = ""
    agent: str = ""
    answered: int = 0
    errors: int = 0
    response: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The fields, in JSON's types."""
        return asdict(self)


def ask(path: str, command: str, timeout: float = TIMEOUT) -> str:
    """Send one command, return the answer; raises SocketError."""
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            connection.sendall(f"{command}\n".encode())
            while chunk := connection.recv(65536):
                answer += chunk
        except FileNotFoundError:
            raise SocketError(f"has no socket {path}: it does not run, or with another configuration") from None
        except ConnectionRefusedError:
            raise SocketError(f"does not run: no process listens on {path}") from None
        except TimeoutError:
            raise SocketError(f"did not answer on {path} within {timeout:g} s") from None
        except OSError as error:
            raise SocketError(f"cannot be asked on {path}: {error.strerror or error}") from None
    return answer.decode("utf-8", "replace")


def servers(text: str) -> Iterator[Server]:
    """The servers in the answer to `show stat`, without Prometheus (gateway/watching.py)."""
    for row in csv.DictReader(io.StringIO(text.removeprefix("# "))):
        if not row.get("svname") or row["svname"] in TOTALS or row.get("pxname") == WATCHING:
            continue
        # `* ` is HAProxy's mark of a check that is being repeated.
        words = [(row.get("check_status") or "").removeprefix("* "), row.get("last_chk") or row.get("check_desc") or ""]
        yield Server(
            backend=row.get("pxname") or "",
            name=row["svname"],
            status=row.get("status") or "",
            sessions=_number(row.get("scur")),
            queue=_number(row.get("qcur")),
            requests=_number(row.get("stot")),
            check=" ".join(filter(None, words)),
            seconds=_number(row.get("lastchg")),
            address=row.get("addr") or "",
            agent=_agent(row),
            answered=sum(_number(row.get(f"hrsp_{kind}")) for kind in ("1xx", "2xx", "3xx", "4xx", "5xx", "other")),
            errors=sum(_number(row.get(name)) for name in ("hrsp_5xx", "econ", "eresp")),
            response=_number(row.get("rtime")),
        )


def _agent(row: Mapping[str, str]) -> str:
    """What an agent said: HAProxy shows `via agent : down (reason)`, or why there was no answer.

    While the agent is asked again the words are gone, and only the status is there.
    """
    status = (row.get("agent_status") or "").removeprefix("* ")
    if not status or status in ("INI", "UNK"):  # not asked yet
        return ""
    said = (row.get("last_agt") or "").removeprefix("via agent : ")
    if status.startswith("L7"):
        return said or {"L7OK": "up", "L7STS": "down"}.get(status, row.get("agent_desc") or status)
    return f"{NO_ANSWER} ({said or row.get('agent_desc') or status})"


def located(text: str, backend: str, server: str, port: int, address: str | None = None) -> str:
    """The configuration `text` with a server of a backend at another port, and at another `address` if one is given."""
    lines, section = text.split("\n"), ""
    for number, line in enumerate(lines):
        words = line.split()
        if words and not line[0].isspace():
            section = " ".join(words[:2])
        elif section == f"backend {backend}" and words[:2] == ["server", server] and len(words) > 2:
            host = f"[{address}]" if address and ":" in address else address or words[2].rpartition(":")[0]
            lines[number] = re.sub(r"(\s+server\s+\S+\s+)\S+", rf"\g<1>{host}:{port}", line, count=1)
    return "\n".join(lines)


def locate(path: str, backend: str, server: str, port: int, address: str | None = None) -> bool:
    """Have HAProxy find a server at another port, and another `address` where one is given; whether that was a change.

    HAProxy 3.0 answers before its table shows the new place (seen on a busy machine); 2.6 does it at once.

    Raises SocketError when HAProxy cannot be asked, has no such server, or does not do it.
    """
    before = _place(path, backend, server)
    wanted = (address or before[0], port)
    if before == wanted:
        return False
    answer = ask(path, f"set server {backend}/{server} addr {wanted[0]} port {port}")
    end = time.monotonic() + TIMEOUT
    while _place(path, backend, server) != wanted:
        if time.monotonic() > end:
            said = answer.strip() or "no reason was given"
            raise SocketError(f"did not take port {port} for {backend}/{server} within {TIMEOUT:g} s: {said}")
        time.sleep(PAUSE)
    return True


def _place(path: str, backend: str, server: str) -> tuple[str, int]:
    """Address and port of a server, from the table that `show servers state` gives after its version."""
    lines = ask(path, f"show servers state {backend}").splitlines()
    names = next((line.lstrip("# ").split() for line in lines if line.startswith("#")), [])
    for row in (dict(zip(names, line.split(), strict=False)) for line in lines if not line.startswith("#")):
        if row.get("srv_name") == server:
            return row["srv_addr"], _number(row.get("srv_port"))
    raise SocketError(f"has no server {backend}/{server}")


def admit(path: str, server: str, timeout: float) -> tuple[bool, str | None]:
    """Have HAProxy send requests to a server again: whether that was a change, and the backend that has it UP.

    In every backend that has it; one with open requests goes on with them. No backend (None) has it UP after
    ``timeout`` s; with 0 that is not waited for (an empty name). Raises SocketError when HAProxy cannot be asked or has
    no such server.

    What a watchdog said of the server before holds only as long as the watchdog goes on to answer.
    """
    before = _entries(path, server)
    if not before:
        raise SocketError(f"has no server {server}")
    for entry in before:
        where = f"{entry.backend}/{entry.name}"
        if entry.status.startswith(_UP):
            continue
        # On-marked-down ends what is open.
        if not entry.sessions:
            ask(path, f"set server {where} health down")
        if entry.status.endswith(_AGENT) and entry.agent.startswith(NO_ANSWER):
            ask(path, f"set server {where} agent up")
        ask(path, f"set server {where} state ready")
    changed = not any(entry.status.startswith(_UP) for entry in before)
    end = time.monotonic() + timeout
    while timeout > 0:
        up = [entry.backend for entry in _entries(path, server) if entry.status.startswith(_UP)]
        if up:
            return changed, up[0]
        if time.monotonic() >= end:
            return changed, None
        time.sleep(0.1)
    return changed, ""


def _entries(path: str, server: str) -> list[Server]:
    return [entry for entry in servers(ask(path, "show stat")) if entry.name == server]


def map_text(path: str, name: str) -> str | None:
    """Return a map of HAProxy as its file would have it, sorted; None where the process has no such map."""
    answer = ask(path, f"show map {name}")
    if answer.startswith("Unknown map"):
        return None
    return "".join(sorted(f"{line.partition(' ')[2]}\n" for line in answer.splitlines() if line.strip()))


def replace_map(path: str, name: str, text: str) -> bool:
    """Have HAProxy take a map as a whole, between two requests; whether that was a change.

    Raises SocketError when HAProxy cannot be asked, or has something else afterwards. No answer of it is shown,
    because a key's hash may be in it.
    """
    before = map_text(path, name)
    if before in (None, text):
        return False
    version = ask(path, f"prepare map {name}").rpartition(":")[2].strip()
    if not version.isdigit():
        raise SocketError(f"does not begin a new version of {name}")
    # A command fits into one buffer.
    lines = text.splitlines(keepends=True)
    for first in range(0, len(lines), CHUNK):
        ask(path, f"add map @{version} {name} <<\n{''.join(lines[first : first + CHUNK])}")
    ask(path, f"commit map @{version} {name}")
    if map_text(path, name) != text:
        raise SocketError(f"did not take the new content of {name}")
    return True


def info(text: str) -> dict[str, str]:
    """The `Name: value` lines of the answer to `show info`."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: value for name, colon, value in pairs if colon}


def sums(contents: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 that each file is to have, by path, for survey()."""
    return {
        path: hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() for path, text in contents.items()
    }


def versioned(text: str, pools: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return a configuration with its own version in it, where it has VERSION: ten digits of a sum of all but the
    addresses of servers, which differ between gateways and change in waves.

    Nor is it the number at the end of a backend's name: that tells how many changes a gateway has gone through.
    """
    same = re.sub(r"(?m)^(    server \S+) \S+", r"\1", text)
    for pool in pools:
        name, base = pool["name"], pool.get("base", pool["name"])
        if name != base:
            same = re.sub(rf"(?<![\w.:-]){re.escape(name)}(?![\w.:-])", base, same)
            same = same.replace(generations.variable(name), generations.variable(base))
    return text.replace(VERSION, hashlib.sha256(same.encode("utf-8", "surrogateescape")).hexdigest()[:10])


def survey(
    path: str,
    program: str,
    files: Mapping[str, str],
    digest: Callable[[str], str | None],
    maps: Iterable[str] = (),
) -> dict[str, Any]:
    """Everything a gateway reports about itself; `files` are paths with the digest each should have.

    Those of them in `maps` are also compared with what the process has.
    """
    found: dict[str, Any] = {
        "installed": Path(program).is_file(),
        "differing": [name for name, wanted in files.items() if not Path(name).is_file() or digest(name) != wanted],
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    try:
        about = info(ask(path, "show info"))
        stats = ask(path, "show stat")
        running = {name: map_text(path, name) for name in maps}
    except SocketError as error:
        return {**found, "running": False, "reason": str(error), "servers": []}
    found["differing"] += [
        name
        for name, text in running.items()
        if name not in found["differing"] and text is not None and sums({name: text})[name] != files.get(name)
    ]
    return {
        **found,
        "running": True,
        "version": about.get("Version", ""),
        # Whatever else an administrator may have written there is no version.
        "configuration": about.get("description", "").removeprefix(DESCRIPTION),
        "stale": _older(about.get("Pid", ""), files),
        "servers": [server.as_dict() for server in servers(stats)],
    }


def _older(pid: str, files: Mapping[str, str]) -> bool:
    """Whether the process was born before one of the files was last written."""
    try:
        # After the name in brackets, which may hold anything, the twentieth field is the start in ticks since the boot
        # (proc_pid_stat(5)). The times of /proc/PID itself are those of the first look at it.
        ticks = int(Path("/proc", pid, "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return True
    born = time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))
    return any(path.stat().st_mtime > born for path in map(Path, files) if path.is_file())


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
