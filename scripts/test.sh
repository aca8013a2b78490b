#!/usr/bin/env bash
# Checks, then tests; arguments go to pytest. The user's own services and keys are left out: only `make test-live` uses those.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
linted=0
[ -n "${BABYLON_RL_VENV:-}" ] || scripts/lint.sh || linted=$? # `make test-python` runs the tests alone: style and types are of one Python
# Three at a time on two cores, a file's tests together: much of the time is waiting for servers to start and stop. In the files' own
# order, which puts short tests last; by the number of tests it would be the longest ones.
"${BABYLON_RL_VENV:-.venv}/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
exit "$linted"
