#!/usr/bin/env bash
# Stops what still runs and removes what set-up, demo and tests made; touches nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
state=$(state_directory)

if [ -d "$state" ] && [ -x .venv/bin/babylon-rl ]; then
    timeout 60 .venv/bin/babylon-rl stop || echo "clean: \`babylon-rl stop\` did not work; stopping the database by its process id" >&2
fi

# The embedded server, if it still runs: its first line is the postmaster's process id, its second its data directory.
for pid_file in "$state"/postgres/postmaster.pid "$state"/postgres/*/postmaster.pid; do
    [ -f "$pid_file" ] || continue
    pid=$(head -n 1 "$pid_file")
    if ps -p "$pid" -o args= 2>/dev/null | grep -q postgres; then
        echo "clean: stopping the embedded database (process $pid)"
        kill -INT "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
done

case "$(pwd -P)/" in
    "$state"/*) echo "clean: $state holds this project and stays" >&2 ;;
    *)
        if [ -f "$state/.babylon_rl_home" ] || [ "$state" = "$(pwd -P)/.babylon" ]; then
            rm -rf "$state"
        elif [ -d "$state" ]; then
            echo "clean: $state was not made by the set-up (it has no file .babylon_rl_home) and stays" >&2
        fi ;;
esac

rm -rf .venv .venv-python* .venv-dagster* .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis build dist ./*.egg-info
for room in babylon_rl babylon_rl_tests benchmarks scripts; do
    [ -d "$room" ] && find "$room" -type d -name __pycache__ -prune -exec rm -rf {} +
done
echo "clean: done"
