# SPDX-License-Identifier: Apache-2.0
"""Creates containers of each spelling on an engine, and compares each with all of the others. Nothing is started.

The driver is a program for the node's own Python and Docker SDK, with the project's code in it.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import spellings

ROOT = Path(__file__).resolve().parents[2]
#: Combinations at random beside the rounds in which each wish is once.
MIXED = 8

_DRIVER = r"""
import base64, json, sys, tempfile
job = json.loads(base64.b64decode(JOB))
package = tempfile.NamedTemporaryFile(suffix=".zip")
package.write(base64.b64decode(job["package"]))
package.flush()
sys.path.insert(0, package.name)
from ansible.module_utils.vllm_fleet.container import compare, fields, spec
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.container.options import ContainerOptions

engine, redact = Engine(), compare.fingerprint(b"k" * 32)
image = engine.image(job["image"])
base = {"name": job["name"], "image": job["image"], "model": "acme/tiny", "accelerator": "cpu", "allow_unauthenticated": True}
wrong, made = [], 0
for variants in job["rounds"]:
    specs = []
    for options in variants:
        parsed = ContainerOptions.from_params({**base, **options})
        node = fields.NodeFacts(groups={"daemon": 1})
        specs.append(spec.build(parsed, image, node, shutdown_timeout=True, engine_cache=options["engine_cache"]))
    for number, wanted in enumerate(specs):
        container = engine.create(wanted, image)
        made += 1
        try:
            have = engine.container(job["name"])
            for other, candidate in enumerate(specs):
                for found in compare.differences(candidate, image, have, image, redact):
                    values = [variants[n].get(found.name.partition(".")[0]) for n in (number, other)]
                    wrong.append([values, found.as_dict()])
        finally:
            engine.remove(container)
engine._api.remove_volume("vllm-fleet-spelling", force=True)
json.dump({"wrong": wrong, "made": made}, sys.stdout)
"""


def _package() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as out:
        for name in ("ansible/__init__.py", "ansible/module_utils/__init__.py"):
            out.writestr(name, "")
        for path in sorted((ROOT / "module_utils").rglob("*.py")):
            out.write(path, f"ansible/{path.relative_to(ROOT)}")
    return data.getvalue()


def compared(python: Sequence[str], image: str, name: str) -> dict[str, Any]:
    """Run it all with a command that reads a Python program: what was wrong, and how many containers were made."""
    job = {
        "package": base64.b64encode(_package()).decode(),
        "rounds": [*spellings.rounds("/srv/models"), *spellings.mixed("/srv/models", MIXED)],
        "image": image,
        "name": name,
    }
    program = f"JOB = {base64.b64encode(json.dumps(job).encode())!r}\n{_DRIVER}"
    done = subprocess.run([*python, "-"], input=program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
