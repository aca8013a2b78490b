#!/usr/bin/env bash
# Runs the schedules of the simulation that have not run yet, or one again: scripts/faults.sh --schedules 1000, scripts/faults.sh --seed 7
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
exec .venv/bin/python -m babylon_rl_tests.faults.run_schedules "$@"
