#!/usr/bin/env bash
# Tries fresh inputs on the readers of other programs' answers for so many seconds: scripts/fuzz.sh 3600
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
end=$(($(date +%s) + $1)) rounds=0
while [ "$(date +%s)" -lt "$end" ]; do
    ROUNDS=5 .venv/bin/python -m pytest babylon_rl_tests/fuzz -q --timeout=0 -n 2
    rounds=$((rounds + 1))
done
echo "fuzz: $rounds rounds in $1 s, and nothing was found"
