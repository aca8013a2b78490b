#!/usr/bin/env bash
# Tries fresh inputs on the readers of other programs' bytes: each READER so many seconds by coverage, then all of them as long by
# hypothesis: scripts/fuzz.sh 3600 [READER...]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
seconds=$1
shift
[ "$#" -gt 0 ] || set -- decode stitch judge snapshots gateway streams templates json upstreams schemas
if .venv/bin/python -c 'import atheris' 2>/dev/null; then
    for reader in "$@"; do
        .venv/bin/python -m babylon_rl_tests.fuzz.coverage_guided "$reader" "$seconds" 2> "build/fuzz-$reader.log" || {
            tail -n 40 "build/fuzz-$reader.log"
            echo "fuzz: $reader failed; the input is beside build/fuzz/$reader: add it to babylon_rl_tests/fuzz/corpus with its fix" >&2
            exit 1
        }
        echo "fuzz: $reader: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz-$reader.log") inputs by coverage in $seconds s"
    done
else
    echo "fuzz: by hypothesis alone: atheris has wheels for Linux on x86-64 only"
fi
end=$(($(date +%s) + seconds)) rounds=0
while [ "$(date +%s)" -lt "$end" ]; do
    ROUNDS=5 .venv/bin/python -m pytest babylon_rl_tests/fuzz -q --timeout=0 -n 2
    rounds=$((rounds + 1))
done
echo "fuzz: $rounds rounds by hypothesis in $seconds s, and nothing was found"
