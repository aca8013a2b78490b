#!/usr/bin/env bash
# Runs a command in the clone with the libraries' caches inside the state directory: scripts/with_state.sh .venv/bin/babylon-rl demo
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
exec "$@"
