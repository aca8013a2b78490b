#!/usr/bin/env bash
# import-linter, silent when the contract is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
output=$(.venv/bin/lint-imports --cache-dir .import_linter_cache 2>&1) || { echo "$output"; exit 1; }
