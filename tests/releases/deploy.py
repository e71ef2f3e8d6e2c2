#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Deploys releases of vLLM one after the other behind a gateway, changes each under load, and takes it away.

    deploy.py 0.32.0 0.9.2.post2 [--results FILE]

Each has two nodes: a server of the release on the first, the stand-in for vLLM on the second, which answers while the
first one is drained and replaced. So a release costs two starts. The next release is installed meanwhile, and what a
release had is removed after it. One that goes wrong is written down, with the sentence that the project said and the
server's log, and the next one follows.

Appends rows of docs/testing.md's table to FILE (RELEASES/deployed.md); what playbooks said is kept in
RELEASES/deployed-RELEASE. Needs what record.py needs, the image and the model of the local inventory, and the node image
of the fleet (tests/fleet/fleet.py makes it). Ends with 1 where something did not go as it should.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import docker
import yaml
from release_tree import CACHE, RELEASES, ROOT, TREE, make_image, make_tree, remove, run

sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("fleet", "integration", "real_fleet", "load", "")]
sys.path.insert(0, str(ROOT / "module_utils"))

import standin  # noqa: E402
from fleet import Fleet, FleetError  # noqa: E402
from load import Load  # noqa: E402
from real_nodes import RealNodes  # noqa: E402
from real_site import KEY, LOCAL, Site, changed  # noqa: E402
from vllm_fleet.vllm import releases  # noqa: E402 - this program runs without Ansible

#: The release's node, which is the gateway, too, and the stand-in's.
NODES = OURS, OTHER = ("node1", "node2")
#: One question says whether a release answers well; the rest of the preset's would only take longer.
VERIFY = [
    {
        "name": "capital",
        "api": "chat",
        "prompt": "What is the capital of France?",
        "max_tokens": 16,
        "temperature": 0,
        "expect": {"pattern": "Paris"},
    }
]
#: Two cores answer slowly while a server loads on them.
SLOW: dict[str, Any] = {"concurrency": 2, "max_tokens": 16, "timeout": 300.0}
#: A flag that no release of the last year has.
GONE = "disable-log-requests"
#: Seconds for each token of the stand-in: about as slow as the release, so that both always have a request.
TOKEN_DELAY = "0.1"


class WrongError(Exception):
    """Something did not go as it should; the text is one sentence."""


@dataclass
class Row:
    """What was found, by the names of the table's columns."""

    release: str
    cells: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    HEAD: ClassVar = ("deployed", "answers", "changed under load", "second run", "refused", "taken away")

    def __str__(self) -> str:
        """The row in Markdown, and what went wrong below it."""
        cells = (self.release, *(self.cells.get(name, "-") for name in self.HEAD))
        return "\n".join([f"| {' | '.join(cells)} |", *(f"{self.release}: {wrong}" for wrong in self.wrong)])


class Deployment:
    """The steps, each of which fills a cell of the row or raises WrongError."""

    def __init__(self, site: Site, row: Row, logs: Path) -> None:
        self.site, self.row, self.logs = site, row, logs

    def play(self, name: str, playbook: str, *words: str, fails: bool = False, **edit: Any) -> str:
        """Run a playbook and keep what it says; WrongError where it fails, or does not when it should."""
        got, said = self.site.run(playbook, *words, **edit)
        (self.logs / f"{name}.log").write_text(said)
        if bool(got) != fails:
            raise WrongError(f"exit code {got} of {playbook}: {sentence(said)}")
        return said

    def deploy(self) -> None:
        """Bring both servers up."""
        begun = time.monotonic()
        self.play("deploy", "deploy.yml", rollout_waves=["100%"])
        self.row.cells["deployed"] = f"{time.monotonic() - begun:.0f} s"
        answers = [node["answers"][0]["content"] for node in self.site.report()["nodes"]]
        right = [answer for answer in answers if "Paris" in answer]
        self.row.cells["answers"] = "right" if len(right) == len(NODES) else "wrong"
        if len(right) != len(NODES):
            raise WrongError(f"expected an answer with Paris from both servers, got {answers}")

    def change(self) -> None:
        """Change an argument while clients ask: each server is drained, replaced and admitted in its turn."""
        with Load(self.site.url, model=LOCAL["vllm_server_model"], api_key=KEY, **SLOW) as clients:
            clients.wait_for(4, 300)
            self.play("change", "deploy.yml", rollout_waves=[1, "100%"], vllm_server_args={"max-model-len": 768})
            clients.wait_for(4, 300)
        report = clients.report
        (self.logs / "load.txt").write_text(f"{report}\n")
        lost = report.errors + report.truncated
        self.row.cells["changed under load"] = f"{lost} lost of {report.requests} ({report.servers[OURS]} its own)"
        if lost or report.servers.keys() != set(NODES):
            raise WrongError(f"expected whole answers from both servers, got {report}")
        outcomes = [node["outcome"] for node in self.site.report()["nodes"]]
        if outcomes != ["replaced"] * len(NODES):
            raise WrongError(f"expected both servers replaced, got {outcomes}")

    def again(self) -> None:
        """Run once more: nothing may change."""
        count = changed(self.play("again", "deploy.yml"))
        self.row.cells["second run"] = f"changed={count}"
        if count:
            raise WrongError(f"expected changed=0 of the second run, got {count}")

    def refuse(self) -> None:
        """Ask for a flag that the release does not have: the run fails by the release's name, and nothing stops."""
        flag, before = missing_flag(self.row.release), self.started()
        host = self.site.folder / "host_vars" / f"{OURS}.yml"
        host.write_text(yaml.safe_dump({"vllm_server_args": {"max-model-len": 768, flag: "1"}}))
        said = self.play("refuse", "deploy.yml", fails=True)
        host.unlink()
        found = re.search(rf"(vLLM [\w.]+) \([^)]*\) has no (--{flag} \([^)]*\))", " ".join(said.split()))
        if not found:
            raise WrongError(f"expected the refusal of --{flag} to name the release, got {sentence(said)}")
        if self.started() != before:
            raise WrongError(f"expected the servers to go on when --{flag} is refused, but they were started again")
        self.row.cells["refused"] = " has no ".join(found.groups())

    def teardown(self) -> None:
        """Take all away."""
        self.play("teardown", "playbooks/teardown.yml", "-e", "teardown_confirm=yes")
        left = [name for name in NODES if self.site.nodes.fleet.exec(name, ["docker", "ps", "-aq"]).stdout]
        self.row.cells["taken away"] = "yes" if not left else f"not on {', '.join(left)}"
        if left:
            raise WrongError(f"expected no container after the teardown, got some on {', '.join(left)}")

    def started(self) -> list[str]:
        """When each server began."""
        ask = ["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "vllm"]
        return [self.site.nodes.fleet.exec(name, ask).stdout for name in NODES]

    def keep_log(self, step: str) -> None:
        """Keep what the release's servers said, for whoever looks into what went wrong."""
        words = 'for name in $(docker ps -a --format "{{.Names}}"); do echo "== $name"; docker logs "$name"; done 2>&1'
        with suppress(FleetError):
            (self.logs / f"servers-{step}.log").write_text(self.site.nodes.fleet.exec(OURS, ["sh", "-c", words]).stdout)

    def all(self) -> None:
        """Do every step; what follows a first deployment is tried whatever went wrong before it."""
        for step in (self.deploy, self.change, self.again, self.refuse, self.teardown):
            begun, name = time.monotonic(), step.__name__
            try:
                step()
            except (WrongError, FleetError, TimeoutError, AssertionError, LookupError) as wrong:
                self.row.wrong.append(f"{name}: {str(wrong) or repr(wrong)}")
                self.keep_log(name)
            print(f"{self.row.release} {name}: {time.monotonic() - begun:.0f} s", flush=True)
            if name == "deploy" and self.row.wrong:
                return


def missing_flag(release: str) -> str:
    """Return a flag that a release does not have: one that came soon after it, else one that is gone."""
    later = [(since, flag) for flag, since in releases.SINCE.items() if releases.older(release, since)]
    return min(later, key=lambda one: (releases.version_of(one[0]) or (0, 0, 0), one[1]))[1] if later else GONE


def sentence(said: str) -> str:
    """Return the first error that a run printed, else its end."""
    found = re.search(r"(?:fatal: |\[ERROR\]: |\bmsg: ?).*", said)
    return (found.group(0) if found else said[-600:])[:900]


def env_of(release: str) -> dict[str, str]:
    """Return how this release is told not to bind its threads to cores, and what it wants of Debian 13."""
    ((name, value),) = releases.VALUES_SINCE
    env = {name: "all" if releases.older(release, releases.VALUES_SINCE[name, value]) else value}
    # Debian 13's C library loads no library that wants an executable stack, as one of 0.9.2 and 0.10.2 does.
    return env | ({"GLIBC_TUNABLES": "glibc.rtld.execstack=2"} if releases.older(release, "0.11") else {})


@contextmanager
def two_nodes(release: str, image: str, other: str, *, keep: bool) -> Iterator[RealNodes]:
    """Two nodes: the first with the release's image and its tree as a mount, the second with the stand-in's image."""
    fleet = Fleet(f"release-{release.replace('.', '-')}")
    fleet.down()
    folder = Path(tempfile.mkdtemp(prefix="release-"))
    models = folder / "models"
    models.mkdir(mode=0o755)
    try:
        # Not read-only: what the first start compiles of Python, the next ones need not.
        tree = f"{RELEASES / 'trees' / release}:{TREE}"
        fleet.up(folder, ["bookworm", "bookworm"], mounts=[tree], lasting=keep)
        fleet.load([image], [OURS])
        fleet.load([other], [OTHER])
        yield RealNodes(fleet, folder, identity(image), models)
    finally:
        if not keep:
            fleet.down()
            shutil.rmtree(folder, ignore_errors=True)


def identity(image: str) -> str:
    """Return an image's id."""
    return str(json.loads(run(["docker", "image", "inspect", image]))[0]["Id"])


def go(row: Row, image: str, *, keep: bool) -> None:
    """Deploy one release."""
    logs = RELEASES / f"deployed-{row.release}"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    with standin.using_images():
        other = standin.build_image(docker.from_env())
        with two_nodes(row.release, image, other, keep=keep) as nodes:
            folder = nodes.folder / "site"
            (folder / "host_vars").mkdir(parents=True)
            name, _, tag = other.partition(":")
            theirs = {"vllm_image_name": name, "vllm_image_tag": tag, "vllm_image_expected_id": identity(other)}
            theirs |= {"vllm_server_volumes": [], "vllm_server_env": {"STANDIN_TOKEN_DELAY": TOKEN_DELAY}}
            (folder / "host_vars" / f"{OTHER}.yml").write_text(yaml.safe_dump(theirs))
            site = Site(
                nodes,
                folder,
                image,
                vllm_server_volumes=[f"{TREE}:{TREE}"],
                vllm_server_env=env_of(row.release),
                vllm_server_verify=VERIFY,
                # Each client has another server then.
                gateway_balance="leastconn",
            )
            Deployment(site, row, logs).all()


def install(release: str) -> str:
    """Install a release and make its image; gives the image's name."""
    make_tree(release)
    return make_image(release)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="+", metavar="RELEASE")
    parser.add_argument("--results", type=Path, default=RELEASES / "deployed.md", help="file that rows are added to")
    parser.add_argument("--keep", action="store_true", help="leave nodes and trees for a look (fleet.py down)")
    asked = parser.parse_args()
    bad = False
    # One at a time, each while the one before it is deployed.
    with ThreadPoolExecutor(max_workers=1) as installer:
        installed = [(release, installer.submit(install, release)) for release in asked.releases]
        run([sys.executable, str(ROOT / "scripts/seed_smollm2/seed.py"), "--cache", str(CACHE / "seed")])
        for release, image in installed:
            row, begun = Row(release), time.monotonic()
            try:
                ready = image.result()
                print(f"{release} waited for its installation: {time.monotonic() - begun:.0f} s", flush=True)
                go(row, ready, keep=asked.keep)
            except (Exception, SystemExit) as wrong:  # noqa: BLE001 - the next release follows, whatever it was
                row.wrong.append(f"{type(wrong).__name__}: {wrong}")
            bad = bad or bool(row.wrong)
            print(f"{row}\n{release}: {time.monotonic() - begun:.0f} s in all", flush=True)
            with asked.results.open("a") as results:
                results.write(f"{row}\n")
            if not asked.keep:
                with suppress(SystemExit):
                    remove(release)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
