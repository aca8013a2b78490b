#!/usr/bin/env bash
# The tests of what meets Dagster with the release that DAGSTER names, in an environment and a state directory of its own beside those of
# `make setup`; arguments go to pytest. The first time needs the package registry.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
if ! [[ "${DAGSTER:-}" =~ ^1\.([0-9]+)\.([0-9]+)$ ]]; then
    echo "test-dagster: name the release: make test-dagster DAGSTER=1.13.20 [PYTEST_ARGS='-k name']" >&2
    exit 2
fi
# Each release of dagster has integrations of its own: 0.29.20 are those of 1.13.20.
integrations="0.$((BASH_REMATCH[1] + 16)).${BASH_REMATCH[2]}"
state=$(state_directory)
export BABYLON_RL_VENV=".venv-dagster$DAGSTER" BABYLON_RL_HOME="$state/dagster$DAGSTER"
scripts/setup.sh
python="$BABYLON_RL_VENV/bin/python"
if [ "$("$python" -c 'import importlib.metadata as m; print(m.version("dagster"), m.version("dagster-postgres"))')" != "$DAGSTER $integrations" ]; then
    packages=("dagster==$DAGSTER" "dagster-webserver==$DAGSTER")
    for name in aws celery k8s postgres; do packages+=("dagster-$name==$integrations"); done
    # The lock holds for everything but these and the client of Kubernetes, of which each release takes a few versions.
    others=$(grep -oE '^[a-z0-9.-]+==[^ ;]+' requirements.lock | grep -vE '^(dagster|kubernetes==)')
    "$python" -m pip install --quiet --disable-pip-version-check --constraint <(echo "$others") "${packages[@]}"
fi
exec scripts/test.sh -m "not live" babylon_rl_tests/assets babylon_rl_tests/e2e "$@"
