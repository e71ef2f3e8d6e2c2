#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Deploys a release of vLLM on two nodes behind a gateway, changes it under load, and takes it away.

    deploy.py 0.9.2.post2 [--env NAME=VALUE...] [--keep]

Prints one row of a table, as docs/testing.md has them. Needs what record.py needs, and the node image of the fleet
(tests/fleet/fleet.py makes it). What the playbooks said is kept in RELEASES/deployed-RELEASE. Ends with 1 where
something did not go as it should; the row says what.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from release_tree import RELEASES, ROOT, TREE, make_image, make_tree, run

sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("fleet", "real_fleet", "load", "")]
sys.path.insert(0, str(ROOT / "module_utils"))

from fleet import Fleet  # noqa: E402
from load import Load  # noqa: E402
from real_nodes import RealNodes  # noqa: E402
from real_site import KEY, LOCAL, Site, changed  # noqa: E402
from vllm_fleet.vllm import releases  # noqa: E402 - this program runs without Ansible

NODES = ("node1", "node2")
#: One question says whether a release answers well; the rest of the preset's would only take longer.
VERIFY = [
    {
        "name": "capital",
        "api": "chat",
        "prompt": "What is the capital of France?",
        "max_tokens": 64,
        "temperature": 0,
        "expect": {"pattern": "Paris"},
    }
]
#: Two cores answer slowly while another server loads on them.
SLOW: dict[str, Any] = {"concurrency": 2, "max_tokens": 16, "timeout": 300.0}


class WrongError(Exception):
    """Something did not go as it should; the text is one sentence."""


@dataclass
class Row:
    """What was found, by the names of the table's columns."""

    release: str
    cells: dict[str, str] = field(default_factory=dict)
    wrong: str = ""

    HEAD: ClassVar = ("deployed", "answers", "changed under load", "second run", "refused", "taken away")

    def lines(self) -> str:
        """The row in Markdown, below its head."""
        head = ("release", *self.HEAD)
        cells = (self.release, *(self.cells.get(name, "-") for name in self.HEAD))
        table = [f"| {' | '.join(words)} |" for words in (head, ["---"] * len(head), cells)]
        return "\n".join([*table, *([f"{self.release}: {self.wrong}"] if self.wrong else [])])


class Deployment:
    """The steps, each of which fills a cell of the row or raises WrongError."""

    def __init__(self, site: Site, row: Row, logs: Path) -> None:
        self.site, self.row, self.logs = site, row, logs

    def play(self, name: str, playbook: str, *words: str, code: int = 0, **edit: Any) -> str:
        """Run a playbook and keep what it says; WrongError where it does not end with this exit code."""
        got, said = self.site.run(playbook, *words, **edit)
        (self.logs / f"{name}.log").write_text(said)
        if got != code:
            raise WrongError(f"{name}: expected exit code {code}, got {got}: {sentence(said)}")
        return said

    def deploy(self) -> None:
        """Bring both servers up."""
        begun = time.monotonic()
        self.play("deploy", "deploy.yml", rollout_waves=["100%"])
        self.row.cells["deployed"] = f"{time.monotonic() - begun:.0f} s"
        answers = [node["answers"][0] for node in self.site.report()["nodes"]]
        bad = [answer for answer in answers if "Paris" not in answer["content"]]
        self.row.cells["answers"] = f"{len(answers) - len(bad)} of {len(NODES)} right"
        if bad or len(answers) != len(NODES):
            raise WrongError(f"expected an answer with Paris from both servers, got {answers}")

    def change(self) -> None:
        """Change an argument while clients ask: each server is drained, replaced and admitted in its turn."""
        with Load(self.site.url, model=LOCAL["vllm_server_model"], api_key=KEY, **SLOW) as clients:
            clients.wait_for(2, 300)
            self.play("change", "deploy.yml", rollout_waves=[1, "100%"], vllm_server_args={"max-model-len": 768})
            clients.wait_for(2, 300)
        report = clients.report
        lost = report.errors + report.truncated
        self.row.cells["changed under load"] = f"{lost} lost of {report.requests}"
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
        flag = next_flag(self.row.release)
        if not flag:
            self.row.cells["refused"] = "has all flags"
            return
        before = self.started()
        said = self.play("refuse", "deploy.yml", code=2, vllm_server_args={"max-model-len": 768, flag: "1"})
        found = re.search(rf"vLLM [\w.]+ \([^)]*\) has no --{flag} \([^)]*\)", " ".join(said.split()))
        if not found:
            raise WrongError(f"expected the refusal of --{flag} to name the release, got {sentence(said)}")
        if self.started() != before:
            raise WrongError(f"expected the servers to go on when --{flag} is refused, but they were started again")
        self.row.cells["refused"] = found.group(0)

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


def next_flag(release: str) -> str:
    """Return a flag that came soon after a release; empty where none did."""
    later = [(since, flag) for flag, since in releases.SINCE.items() if releases.older(release, since)]
    return min(later, key=lambda one: (releases.version_of(one[0]) or (0, 0, 0), one[1]))[1] if later else ""


def sentence(said: str) -> str:
    """Return the first error that a run printed, else its end."""
    found = re.search(r"(?:fatal: |\[ERROR\]: |\bmsg: ?).*", said)
    return (found.group(0) if found else said[-600:])[:900]


def compile_tree(image: str, tree: Path) -> None:
    """Compile all modules once: without, every start of every server would, for the nodes cannot write there."""
    compiled = f"python -m compileall -q -j 0 {TREE}/lib >/dev/null 2>&1 || true"
    run(["docker", "run", "--rm", "--volume", f"{tree}:{TREE}", "--entrypoint", "sh", image, "-c", compiled])


@contextmanager
def two_nodes(release: str, *, keep: bool) -> Iterator[RealNodes]:
    """Two nodes with the release's image, and its tree as a mount."""
    tree, image = make_tree(release), make_image(release)
    compile_tree(image, tree)
    fleet = Fleet(f"release-{release.replace('.', '-')}")
    fleet.down()
    folder = Path(tempfile.mkdtemp(prefix="release-"))
    models = folder / "models"
    models.mkdir(mode=0o755)
    try:
        fleet.up(folder, ["bookworm", "bookworm"], mounts=[f"{tree}:{TREE}:ro", f"{models}:/models:ro"], lasting=keep)
        fleet.load([image])
        identity = json.loads(run(["docker", "image", "inspect", image]))[0]["Id"]
        yield RealNodes(fleet, folder, identity, models)
    finally:
        if not keep:
            fleet.down()
            shutil.rmtree(folder, ignore_errors=True)


def go(release: str, env: dict[str, str], *, keep: bool) -> Row:
    """All steps, up to the first that goes wrong."""
    row, logs = Row(release), RELEASES / f"deployed-{release}"
    logs.mkdir(parents=True, exist_ok=True)
    with two_nodes(release, keep=keep) as nodes:
        folder = nodes.folder / "site"
        folder.mkdir()
        site = Site(
            nodes, folder, f"vllm-release:{release}", vllm_server_env=threads(release) | env, vllm_server_verify=VERIFY
        )
        steps = Deployment(site, row, logs)
        try:
            for step in (steps.deploy, steps.change, steps.again, steps.refuse, steps.teardown):
                begun = time.monotonic()
                step()
                print(f"{release} {step.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
        except WrongError as wrong:
            row.wrong = str(wrong)
    return row


def threads(release: str) -> dict[str, str]:
    """Return how this release is told not to bind its threads to cores, of which two servers share a few."""
    ((name, value),) = releases.VALUES_SINCE
    return {name: "all" if releases.older(release, releases.VALUES_SINCE[name, value]) else value}


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release")
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE", help="more environment of the servers")
    parser.add_argument("--keep", action="store_true", help="leave the nodes for a look (fleet.py down removes them)")
    asked = parser.parse_args()
    row = go(asked.release, dict(item.split("=", 1) for item in asked.env), keep=asked.keep)
    print(row.lines())
    return 1 if row.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
