#!/usr/bin/env bash
# The contract of the serverless trainer with an openpipe-art that is newer than this Python takes, in an environment of its own under the
# state directory; arguments go to pytest. Skipped, and said, where there is no Python 3.12. The first time needs the package registry.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
python="${PYTHON312:-python3.12}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
    echo "test-art: skipped: $(grep '^openpipe-art' requirements-art.in) needs Python 3.12, and $python does not run here." \
         "Name one: make test-art PYTHON312=/path/to/python3.12"
    exit 0
fi
environment="$(state_directory)/art"
# Made anew when what it is made of has changed, or when it was left half made.
if ! cmp -s requirements-art.lock "$environment/made-of.txt" || [ ! -x "$environment/bin/python" ]; then
    rm -rf "$environment"
    "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-art.lock
    cp requirements-art.lock "$environment/made-of.txt"
fi
# With the project's own environment at hand, both versions must find the same model.
[ ! -x .venv/bin/python ] || export BABYLON_RL_OTHER_ART="$PWD/.venv/bin/python"
exec "$environment/bin/python" -m pytest babylon_rl_tests/training/test_remote_contract.py babylon_rl_tests/training/test_art_versions.py \
    --noconftest -p no:cacheprovider -rs "$@"
