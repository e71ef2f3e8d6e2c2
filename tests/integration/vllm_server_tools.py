# SPDX-License-Identifier: Apache-2.0
"""A vLLM server under test: the module's logic against the real Docker engine, with the stand-in as its image.

Three ways to run it, the same options in each: ``Server.run`` calls the logic in this process (quick, for breadth),
``Server.spawn`` in a process of the node's own Python (which may be killed), ``Server.ansible`` the module through its
action plugin, as a user does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import standin

from ansible.module_utils.vllm_fleet.common.secrets import is_secret
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle
from ansible.module_utils.vllm_fleet.server.options import ARGUMENTS, ServerOptions

ROOT = Path(__file__).resolve().parents[2]
PREVIOUS = ".previous"
#: Started containers answer at once, where a test does not order something else.
START = {"STANDIN_START_SECONDS": "0"}


class Server:
    """One container name with its own port and state folder on the machine's engine."""

    def __init__(self, engine: Engine, client: Any, image: str, folder: Path) -> None:
        """Nothing is started; ``close`` removes whatever was."""
        self.engine, self.client, self.image = engine, client, image
        self.name = f"it-{uuid.uuid4().hex[:10]}"
        self.port = standin.free_port()
        self.state_dir, self.folder = folder / "state", folder
        self.fixed: dict[str, Any] = {}

    # -- runs --------------------------------------------------------------------------------------------------

    def options(self, **changes: Any) -> dict[str, Any]:
        """The module's options as Ansible would fill them in; ``env`` is merged over the stand-in's own."""
        given = {
            "name": self.name,
            "image": self.image,
            "model": "acme/tiny",
            "accelerator": "cpu",
            "port": self.port,
            "state_dir": str(self.state_dir),
            "stop_timeout": 12,
            "ready_timeout": 60.0,
            "stall_timeout": 60.0,
            **self.fixed,
            **changes,
        }
        given["env"] = START | dict(given.get("env", {}))
        unknown = given.keys() - ARGUMENTS.keys()
        assert not unknown, f"no such option: {unknown}"
        return {name: given.get(name, argument.get("default")) for name, argument in ARGUMENTS.items()}

    def parsed(self, **changes: Any) -> ServerOptions:
        """The same as the module hands them on."""
        return ServerOptions.from_params(self.options(**changes))

    def run(self, *, check: bool = False, token: Any = None, slice_seconds: float | None = None, **changes: Any) -> Any:
        """Run the logic here and give the module's result."""
        options = self.options(**changes)
        return Lifecycle(
            ServerOptions.from_params(options),
            self.engine,
            host="node7",
            check_mode=check,
            token=token,
            slice_seconds=slice_seconds,
            secrets=secrets_of(options),
        ).run()

    def check(self, **changes: Any) -> Any:
        """Run it in check mode."""
        return self.run(check=True, **changes)

    def ready(self, **changes: Any) -> Any:
        """Run it and insist that it went well."""
        result = self.run(**changes)
        assert not result.get("failed"), result.get("msg")
        return result

    def spawn(self, *, kill_after: int | None = None, slice_seconds: float | None = None, **changes: Any) -> Any:
        """Start the logic in a process of the node's Python; with ``kill_after`` it kills itself after that action."""
        job = {"options": self.options(**changes), "kill_after": kill_after, "slice": slice_seconds}
        process = subprocess.Popen(
            [standin.PYTHON, "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(package_tree(self.folder))},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        process.stdin = None
        return process

    def ansible(self, *arguments: str, check: bool = False, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run the module as ``ansible localhost -m vllm_server -a '{...}'``, through its action plugin."""
        options = {k: v for k, v in self.options(**changes).items() if v is not None}
        command = [
            str(Path(sys.executable).parent / "ansible"),
            *("localhost", "-i", "localhost,", "-c", "local", "-m", "vllm_server", "-a", json.dumps(options)),
            *("-e", f"ansible_python_interpreter={standin.PYTHON}"),
            *(["--check"] if check else []),
            *arguments,
        ]
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, check=False)

    # -- what is there -----------------------------------------------------------------------------------------

    def inspect(self, suffix: str = "") -> Mapping[str, Any] | None:
        """Docker's inspect of the container, or of ``.previous``."""
        return self.engine.container(self.name + suffix)

    def id(self, suffix: str = "") -> str | None:
        """Its id."""
        found = self.inspect(suffix)
        return str(found["Id"]) if found else None

    def picture(self) -> dict[str, tuple[str, bool, str]]:
        """Every container of this server, whatever its name: (id, running, started at)."""
        found = self.client.api.containers(all=True, filters={"name": self.name})
        out = {}
        for row in found:
            info = self.client.api.inspect_container(row["Id"])
            out[info["Name"].lstrip("/")] = (info["Id"], info["State"]["Running"], info["State"]["StartedAt"])
        return out

    def running(self) -> list[str]:
        """Names of its containers that run."""
        return sorted(name for name, (_, running, _) in self.picture().items() if running)

    def served(self, path: str = "/v1/models", key: str | None = None) -> Any:
        """What the server on its port answers, decoded."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)

    def log(self, suffix: str = "") -> str:
        """The container's log so far."""
        return self.engine.log(self.name + suffix).decode(errors="replace")

    def wait_for_log(self, text: str, seconds: float = 120.0) -> None:
        """Wait until the container has said something."""
        end = time.monotonic() + seconds
        while text not in self.log():
            assert time.monotonic() < end, f"{text!r} is not in the log after {seconds} s:\n{self.log()}"
            time.sleep(0.05)

    def docker_run(self, *, name: str | None = None, extra_env: Mapping[str, str] | None = None) -> str:
        """Remove the container and make the same again by hand, with an environment variable more."""
        info = self.inspect()
        assert info is not None
        config, host = info["Config"], dict(info["HostConfig"])
        self.client.api.remove_container(info["Id"], force=True)
        made = self.client.api.create_container(
            config["Image"],
            name=name or self.name,
            entrypoint=config["Entrypoint"],
            command=config["Cmd"],
            environment=[*config["Env"], *(f"{k}={v}" for k, v in (extra_env or {}).items())],
            labels=config["Labels"],
            stop_timeout=config.get("StopTimeout"),
            ports=list(config.get("ExposedPorts") or {}),
            host_config=host,
        )
        self.client.api.start(made["Id"])
        return str(made["Id"])

    def close(self) -> None:
        """Remove its containers."""
        for row in self.client.api.containers(all=True, filters={"name": self.name}):
            with contextlib.suppress(Exception):
                self.client.api.remove_container(row["Id"], force=True, v=True)


def secrets_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that main() hands over as secrets."""
    hidden = {str(v) for k, v in options["env"].items() if is_secret(k)}
    return tuple(hidden | {options[k] for k in ("api_key", "hf_token") if options[k]})


def facts(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """What check mode must predict: changed, actions, differences."""
    return result["changed"], list(result["actions"]), result["differences"]


def names(result: Mapping[str, Any]) -> list[str]:
    """Names of the differences."""
    return [d["name"] for d in result["differences"]]


def outcome(process: subprocess.Popen[str], seconds: float = 300.0) -> tuple[int, Any]:
    """Wait for a spawned run: its exit code and its result, None when it was killed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode in (0, -9), err
    return process.returncode, json.loads(out) if process.returncode == 0 else None


def package_tree(folder: Path) -> Path:
    """Link module_utils to where the sources import it from, without the rest of Ansible."""
    package = folder / "tree" / "ansible" / "module_utils"
    if not package.exists():
        package.mkdir(parents=True)
        (package / "vllm_fleet").symlink_to(ROOT / "module_utils" / "vllm_fleet")
    return folder / "tree"


class Forks:
    """A process of the node's Python that has imported everything and forks for each run: half a second less each."""

    def __init__(self, folder: Path) -> None:
        """Start it; ``close`` ends it."""
        self.folder = folder
        self.process = subprocess.Popen(
            [standin.PYTHON, "-c", _DRIVER, "forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(package_tree(folder))},
        )

    def run(self, options: Mapping[str, Any], kill_after: int | None = None) -> tuple[int, Any]:
        """Run to its end: exit code (-9: killed) and result."""
        assert self.process.stdin is not None and self.process.stdout is not None
        out = self.folder / "result.json"
        job = {"options": options, "kill_after": kill_after, "slice": None, "out": str(out)}
        out.write_text("")
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, json.loads(out.read_text()) if code == 0 else None

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


#: One run of the logic, its job on stdin and its result on stdout; with an argument, a fork for each line of stdin.
_DRIVER = r"""
import json, os, signal, sys
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle
from ansible.module_utils.vllm_fleet.server.options import ARGUMENTS, ServerOptions

def run(job):
    done = []

    def after(action):
        done.append(action)
        if job["kill_after"] is not None and len(done) == job["kill_after"]:
            os.kill(os.getpid(), signal.SIGKILL)

    return Lifecycle(
        ServerOptions.from_params(job["options"]), Engine(), host="node7", slice_seconds=job["slice"], after_action=after
    ).run()

if len(sys.argv) == 1:
    json.dump(run(json.load(sys.stdin)), sys.stdout)
else:
    import docker.api
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open(job["out"], "w") as out:
                    json.dump(run(job), out)
                code = 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
"""
