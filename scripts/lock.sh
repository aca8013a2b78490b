#!/usr/bin/env bash
# Resolves requirements.in for every platform and Python from 3.11 into requirements.lock, with the hashes of all files.
# Versions already locked stay unless requirements.in forbids them; UPGRADE=1 takes the newest. Needs the package registry.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-cache-dir "$(grep -o '^uv==[0-9.]*' requirements.lock)"
# torch is installed by version alone (requirements-torch.txt): here it is asked for nowhere, so that none of its builds is locked.
echo "torch ; python_version < '0'" > "$work/overrides.txt"
cp requirements.lock "$work/requirements.lock"
"$work/venv/bin/uv" pip compile requirements.in --output-file "$work/requirements.lock" --overrides "$work/overrides.txt" \
    --universal --python-version 3.11 --generate-hashes --only-binary :all: --no-cache --quiet ${UPGRADE:+--upgrade} \
    --no-header --no-emit-index-url --no-emit-find-links
{
    echo "# Made by \`make lock\` from requirements.in; do not edit. torch: requirements-torch.txt."
    grep -v '^# Made by ' "$work/requirements.lock"
} > requirements.lock.new
mv requirements.lock.new requirements.lock
echo "lock: $(grep -c '^[a-z0-9].*==' requirements.lock) packages"
