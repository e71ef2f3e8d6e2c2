#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fetches every wheel of a lock through this machine's own pip configuration. What was fetched before an interruption
# is kept and used by the next run; the folder gets its name only when it is complete.
#
# usage: fetch_wheels.sh PYTHON LOCK OUTPUT TORCH_INDEX
#   PYTHON       of the same version as the image's
#   TORCH_INDEX  where to look for torch's CPU build when pip, as configured, does not find it; may be empty
set -eu
python=$1 lock=$2 output=$3 torch_index=${4:-}
part=$output.part
venv=$(dirname "$output")/pip

[ -x "$venv/bin/pip" ] || { rm -rf "$venv"; "$python" -m venv "$venv"; }
mkdir -p "$part"

fetch() {
  "$venv/bin/pip" download --no-deps --only-binary=:all: --progress-bar off --disable-pip-version-check --dest "$part" "$@"
}

# PyPI's own torch is built for CUDA and never matches the pin with +cpu.
# With hashes in the lock, pip takes no other file, whatever index has one of that name.
grep '^torch==' "$lock" >"$part.torch.txt"
torch=$(cut -d' ' -f1 "$part.torch.txt")
echo "fetching $torch"
if ! fetch --requirement "$part.torch.txt"; then
  [ -n "$torch_index" ] || { echo "pip, as configured here, does not find $torch, and no other index is set." >&2; exit 1; }
  fetch --index-url "$torch_index" --requirement "$part.torch.txt"
fi
grep -v -e '^#' -e '^torch==' "$lock" >"$part.txt"
echo "fetching $(grep -c . "$part.txt") more wheels"
fetch --requirement "$part.txt"

rm -rf "$venv" "$part.txt" "$part.torch.txt"
mv "$part" "$output"
echo "wheels: $(du -m "$output" | cut -f1) MB"
