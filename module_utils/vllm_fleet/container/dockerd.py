# SPDX-License-Identifier: Apache-2.0
"""The Docker engine of this machine: what it is, what its daemon.json says, how it is started and reloaded."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import durable
from . import daemon_json
from .api import DockerApi, DockerUnavailable

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds for a program that is asked something, or for systemd to stop and start the engine with all its containers.
PATIENCE = 300.0
#: The exit code of a program that did not end in that time, as timeout(1) gives it.
NOT_ENDED = 124
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "ppc64le": "ppc64el"}


#: Options of the module docker_engine.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["probed", "started"], "default": "started"},
    "config": {"type": "dict", "default": {}},
    "manage_config": {"type": "bool", "default": True},
    "config_path": {"type": "path", "default": "/etc/docker/daemon.json"},
    "allow_restart": {"type": "bool", "default": False},
    "service_manager": {"type": "str", "choices": ["auto", "systemd", "none"], "default": "auto"},
    "socket": {"type": "path", "default": "/var/run/docker.sock"},
    "pid_file": {"type": "path", "default": "/var/run/docker.pid"},
    "log_path": {"type": "path", "default": "/var/log/dockerd.log"},
    "daemon_args": {"type": "list", "elements": "str", "default": []},
    "start_timeout": {"type": "float", "default": 60},
    "use_cached_result": {"type": "bool", "default": False},
}
SPEC: dict[str, Any] = {"argument_spec": ARGUMENTS}


class DockerdFailure(Exception):
    """The engine cannot be brought to what is wanted; the text is one sentence, then evidence."""


@dataclass(frozen=True)
class Settings:
    """Where the engine lives and what it should be; ``start_timeout`` in seconds. The module documents each."""

    config: Mapping[str, Any] = field(default_factory=dict)
    manage_config: bool = True
    config_path: str = "/etc/docker/daemon.json"
    allow_restart: bool = False
    service_manager: str = "auto"
    socket: str = "/var/run/docker.sock"
    pid_file: str = "/var/run/docker.pid"
    log_path: str = "/var/log/dockerd.log"
    daemon_args: Sequence[str] = ()
    start_timeout: float = 60

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Settings:
        """Return the settings out of the checked options of the module docker_engine."""
        return cls(**{name: value for name, value in params.items() if name not in ("state", "use_cached_result")})


def probe(settings: Settings) -> dict[str, Any]:
    """Return what docker_engine returns with ``state: probed``. Nothing changes.

    Raises DockerdFailure, api.DockerUnavailable, api.DockerRefused.
    """
    return {"changed": False, **Dockerd(settings).look()}


class Dockerd:
    """This machine's engine: questions and actions."""

    def __init__(self, settings: Settings) -> None:
        """Remember where the engine lives; nothing is asked yet."""
        self._p = settings
        self._api = DockerApi(settings.socket, timeout=10)
        self._config = Path(settings.config_path)
        self._pending_file = self._config.with_name(f".{self._config.name}.pending")
        os.environ["PATH"] = ":".join(dict.fromkeys([*os.environ.get("PATH", "").split(":"), *_PATH.split(":")]))

    # -- questions ---------------------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """Return everything that the role decides on."""
        info: dict[str, Any] = {}
        denied = False
        try:
            info = self._api.info()
        except DockerUnavailable as exc:
            denied = exc.denied
        existing, merged = self._configs()
        differences = daemon_json.differences(existing, merged)
        pending = self._pending() if info else []
        live, live_restore = int(info.get("ContainersRunning", 0)), bool(info.get("LiveRestoreEnabled"))
        action = daemon_json.action(
            [d["name"] for d in differences], bool(info), live, live_restore, self._p.allow_restart
        )
        if action in ("none", "reload") and pending:
            # What an earlier run had to leave: no reason to stop anything now either.
            action = "restart" if not live or self._p.allow_restart else action
        sdk = _has_sdk()
        client, daemon = shutil.which("docker") or "", shutil.which("dockerd") or ""
        return {
            "right": bool(info and sdk and client and action == "none"),
            "running": bool(info),
            "denied": denied,
            "version": str(info.get("ServerVersion", "")),
            "sdk": sdk,
            "client": client,
            "daemon": daemon,
            "service_manager": self._service_manager(),
            "os": _os_release(),
            "uid": os.geteuid(),
            "sudo": "SUDO_UID" in os.environ,
            "live_containers": live,
            "swarm": (info.get("Swarm") or {}).get("LocalNodeState") == "active",
            "differences": differences,
            "pending": sorted({*pending, *_waiting(differences)} if action == "pending" else pending),
            "action": action,
        }

    def _configs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            existing = daemon_json.parse(self._config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            existing = {}
        except (ValueError, RecursionError) as exc:
            raise DockerdFailure(
                f"{self._config} is not valid JSON: {exc}; mend or remove it, it was left as it is"
            ) from exc
        except OSError as exc:
            raise DockerdFailure(f"{self._config} cannot be read: {exc.strerror}") from exc
        if not self._p.manage_config:
            return existing, existing
        return existing, daemon_json.merge(existing, self._p.config)

    def _service_manager(self) -> str:
        if self._p.service_manager != "auto":
            return self._p.service_manager
        return "systemd" if Path("/run/systemd/system").is_dir() else "none"

    def _pid(self) -> int | None:
        try:
            pid = int(Path(self._p.pid_file).read_text(encoding="utf-8"))
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return pid if name == "dockerd" else None

    def _pending(self) -> list[str]:
        """Keys that a run wrote but left for a restart; void once another dockerd process runs."""
        try:
            left = json.loads(self._pending_file.read_text(encoding="utf-8"))
            return [str(key) for key in left["keys"]] if left["process"] == _identity(self._pid()) else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []  # said again by the next run that leaves something

    # -- actions -----------------------------------------------------------------------------------------------

    def act(self, found: dict[str, Any]) -> None:
        """Write the file if it differs, then do what that takes."""
        action = found["action"]
        if not found["daemon"] and action != "none":
            raise DockerdFailure("dockerd is not installed: expected it on PATH; install docker.io or docker-ce first")
        if found["swarm"] and self._p.config.get("live-restore") and found["differences"]:
            raise DockerdFailure(
                "live-restore cannot be set: this engine is in swarm mode, which excludes it; set "
                "docker_engine_live_restore: false or leave the swarm"
            )
        if found["differences"]:
            self._write(found["daemon"])
        waiting = sorted({*found["pending"], *_waiting(found["differences"])})
        if action in ("reload", "pending"):
            self._reload(found["service_manager"])
        elif action == "restart":
            self._restart(found["service_manager"])
        elif action == "start":
            self._start(found["service_manager"], ["dockerd", *self._flags()])
        if action in ("pending", "reload") and waiting:
            self._leave_pending(waiting)
        elif action in ("restart", "start"):
            with contextlib.suppress(FileNotFoundError):
                self._pending_file.unlink()

    def restart(self) -> None:
        """Restart the engine that runs, as it is. Raises DockerdFailure."""
        self._restart(self._service_manager())

    def _flags(self) -> list[str]:
        flags = ["--pidfile", self._p.pid_file]
        if "hosts" not in self._configs()[1]:  # dockerd refuses what is both a flag and in the file
            flags += ["--host", f"unix://{self._p.socket}"]
        if self._config.exists():
            flags += ["--config-file", str(self._config)]
        return [*flags, *self._p.daemon_args]

    def _write(self, daemon: str) -> None:
        _, merged = self._configs()
        self._config.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self._config.name}.", dir=self._config.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(daemon_json.render(merged))
            Path(name).chmod(0o644)
            # dockerd learnt to check a file with 23.0; an older one shows its usage for the unknown flag.
            _, usage, _ = _run([daemon, "--help"])
            if "--validate" in usage:
                rc, out, err = _run([daemon, "--validate", "--config-file", name])
                if rc:
                    raise DockerdFailure(
                        f"{self._config} was left as it is: dockerd refuses the new one, {(err or out).strip()}"
                    )
            if self._config.exists():
                Path(name).chmod(self._config.stat().st_mode & 0o777)
                shutil.copy2(self._config, f"{self._config}.{time.strftime('%Y-%m-%d@%H:%M:%S')}~")
            durable.settle(Path(name), self._config)  # an empty one keeps dockerd from starting
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _reload(self, manager: str) -> None:
        wanted = self._configs()[1].get("live-restore")
        if manager == "systemd" and self._is_unit():
            self._systemctl("reload", "docker.service")
        else:
            pid = self._pid()
            if pid is None:
                raise DockerdFailure(f"dockerd cannot be reloaded: {self._p.pid_file} names no running dockerd")
            os.kill(pid, signal.SIGHUP)
        # SIGHUP has no answer; of the keys that are reloaded, live-restore is the one that the engine shows.
        deadline = time.monotonic() + 10
        while wanted is not None and bool(self._api.info().get("LiveRestoreEnabled")) != wanted:
            if time.monotonic() > deadline:
                raise DockerdFailure(
                    f"dockerd did not take over {self._config} on SIGHUP: live-restore is still {not wanted}; "
                    f"its log says why\n{self._evidence(manager)}"
                )
            time.sleep(0.1)

    def _restart(self, manager: str) -> None:
        if manager == "systemd" and self._is_unit():
            self._systemctl("restart", "docker.service")
            self._wait(manager, None)
            return
        pid = self._pid()
        argv = ["dockerd", *self._flags()]
        if pid is not None:
            # It goes on with the flags it was started with.
            argv = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
            os.kill(pid, signal.SIGTERM)
            if not _ended(pid, 60):
                raise DockerdFailure(f"dockerd (pid {pid}) did not end within 60 s of SIGTERM; look at its log")
        self._start("none", argv)

    def _start(self, manager: str, argv: list[str]) -> None:
        if manager == "systemd":
            self._systemctl("enable", "docker.service")
            # A unit that failed often enough is not started again until its counter is cleared.
            _run(["systemctl", "reset-failed", "docker.service", "docker.socket"])
            self._systemctl("restart", "docker.service")
            self._wait(manager, None)
            return
        _remove_stale(Path(self._p.pid_file), "dockerd")
        _remove_stale(_exec_root(argv) / "containerd" / "containerd.pid", "containerd")
        log_path = Path(self._p.log_path)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        self._wait(manager, process)

    def _wait(self, manager: str, process: subprocess.Popen[bytes] | None) -> None:
        deadline = time.monotonic() + self._p.start_timeout
        while True:
            with contextlib.suppress(DockerUnavailable):
                self._api.ping()
                return
            if process and process.poll() is not None:
                raise DockerdFailure(
                    f"dockerd ended with exit code {process.returncode} right after its start; its log "
                    f"({self._p.log_path}) ends with\n{self._evidence('none')}"
                )
            if time.monotonic() > deadline:
                raise DockerdFailure(
                    f"dockerd does not answer at {self._p.socket} after {self._p.start_timeout:.0f} s; its log "
                    f"ends with\n{self._evidence(manager)}"
                )
            if process:
                _ended(process.pid, 0.1)
            else:
                time.sleep(0.1)

    def _evidence(self, manager: str) -> str:
        if manager == "systemd":
            _, text, _ = _run(["journalctl", "-u", "docker.service", "-n", "12", "--no-pager"])
            return text.strip()
        try:
            lines = Path(self._p.log_path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "(no log)"
        # dockerd's debug chatter of its gRPC client says nothing about a failed start
        return "\n".join([line for line in lines if "module=grpc" not in line][-12:])

    def _is_unit(self) -> bool:
        rc, _, _ = _run(["systemctl", "is-active", "--quiet", "docker.service"])
        return rc == 0

    def _systemctl(self, verb: str, unit: str) -> None:
        rc, _, err = _run(["systemctl", verb, unit])
        if rc:
            raise DockerdFailure(f"systemctl {verb} {unit} failed: {err.strip()}\n{self._evidence('systemd')}")

    def _leave_pending(self, keys: list[str]) -> None:
        left = json.dumps({"keys": keys, "process": _identity(self._pid())})
        durable.write(self._pending_file, left.encode(), 0o644)


def _waiting(differences: list[dict[str, Any]]) -> list[str]:
    return [d["name"] for d in differences if d["name"] not in daemon_json.RELOADABLE]


def _identity(pid: int | None) -> str:
    """Return a name of a process by which another one with its number is not taken for it."""
    if pid is None:
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f"{boot}:{pid}:{fields[19]}"


def _remove_stale(file: Path, program: str) -> None:
    """Remove the pid file that a killed program left.

    dockerd 20.10 refuses to start while its own names any process, and waits in vain for the containerd that the other
    one names. Such a process may be a stranger that got the number since, or the program itself, dead and not yet
    reaped; the containerd of a killed dockerd is killed with it.
    """
    try:
        pid = int(file.read_text(encoding="utf-8"))
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except ValueError:
        return
    except OSError:
        name = ""
        if not file.exists():
            return
    if name != program or _ended(pid, 5):
        file.unlink(missing_ok=True)


def _exec_root(argv: Sequence[str]) -> Path:
    """Where a dockerd with these arguments keeps the state of what it runs."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == "--exec-root":
            return Path(following)
        if word.startswith("--exec-root="):
            return Path(word.partition("=")[2])
    return Path("/var/run/docker")


def _ended(pid: int, seconds: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    finally:
        os.close(handle)


def _has_sdk() -> bool:
    """Return whether Docker's SDK is installed: by its files, for importing it takes longer than all of the probe."""
    found = importlib.util.find_spec("docker")
    folders = (found and found.submodule_search_locations) or []
    return any(Path(folder, "api", "__init__.py").is_file() for folder in folders)


def _os_release() -> dict[str, str]:
    found = {"id": "", "version_id": "", "version_codename": ""}
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            if key.lower() in found:
                found[key.lower()] = value.strip("\"'")
    return {**found, "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine())}


def _run(argv: Sequence[str]) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return NOT_ENDED, "", f"{' '.join(argv)} did not end within {PATIENCE:.0f} s"
    return done.returncode, done.stdout, done.stderr
