#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the table of presets into docs/models.md, from models/*.yml.

``--check`` writes nothing and fails where the page is not what would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.models import preset_table, presets, sizing  # noqa: E402 - found through the path that is set above

PAGE = ROOT / "docs" / "models.md"
BEGIN = "<!-- The table is written by scripts/gen_models.py from models/*.yml. -->\n"
END = "<!-- End of the table. -->\n"
COLUMNS = ("model", "variant", "weights", *sizing.VRAM, "context", "API", "vLLM from", "features")


def line(preset: Mapping[str, Any], variant: str) -> str:
    """Return the line of one variant of a model; "" is the file's own."""
    one = presets.resolved(preset, variant)
    cells = (
        f"[{one['model']}](../models/{preset['file']}){' (gated)' if preset.get('gated') else ''}",
        f"`{variant}`" if variant else "",
        preset_table.weights(one),
        *(preset_table.gpus(one, kind, "**") for kind in sizing.VRAM),
        str((one.get("config") or {}).get("max_position_embeddings", "")),
        one["api"],
        one.get("min_vllm", ""),
        ", ".join(one.get("features") or ()) if not variant else "",
    )
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """Return the table of all presets, the variants below their model."""
    files = sorted((ROOT / "models").glob("*.yml"))
    content = [{**yaml.safe_load(file.read_text(encoding="utf-8")), "file": file.name} for file in files]
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    return head + "".join(
        line(preset, variant)
        for preset in sorted(content, key=lambda one: one["model"].lower())
        for variant in ("", *(preset.get("variants") or ()))
    )


def main(arguments: list[str]) -> int:
    """Write, or compare."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + "\n" + table() + "\n" + END + after
    if "--check" not in arguments:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if page == wanted:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what models/*.yml say: run scripts/gen_models.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
