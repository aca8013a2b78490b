#!/usr/bin/env bash
# The tests on the Python that PYTHON names, in an environment and a state directory of its own beside those of `make setup`; arguments go
# to pytest. The first time needs the package registry.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
if [ -z "${PYTHON:-}" ]; then
    echo "test-python: name the Python: make test-python PYTHON=python3.13 [PYTEST_ARGS='-k name']" >&2
    exit 2
fi
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || { echo "test-python: PYTHON=$PYTHON does not run" >&2; exit 2; }
state=$(state_directory)
export BABYLON_RL_VENV=".venv-python$version" BABYLON_RL_HOME="$state/python$version"
scripts/setup.sh
exec scripts/test.sh "$@"
