#!/usr/bin/env bash
# Finds a Python that is new enough and hands over to setup.py; run by `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if [ -n "${PYTHON:-}" ]; then
    if ! new_enough "$PYTHON"; then
        version=$("$PYTHON" --version 2>&1) || version="not a Python that runs"
        echo "setup: PYTHON=$PYTHON is ${version#Python }, and 3.11 or newer is needed. Set PYTHON to such an interpreter." >&2
        exit 2
    fi
    found="$PYTHON"
else
    found=""
    for candidate in python3.11 python3 python3.12 python3.13 python; do
        if new_enough "$candidate"; then found="$candidate"; break; fi
    done
    if [ -z "$found" ]; then
        version=$(python3 --version 2>&1) || version="no python3"
        echo "setup: Python 3.11 or newer is needed, and this machine has ${version}. Install it (Debian: apt install python3.11 python3.11-venv)" \
             "or name one: make setup PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
fi
PYTHONDONTWRITEBYTECODE=1 exec "$found" scripts/setup.py --state "$(state_directory)" ${PYTHON:+--asked-python}
