#!/usr/bin/env bash
# Installs the client libraries of test_python_clients.py into build/clients, as their lock says, whole or not at all.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/clients.new build/clients
.venv/bin/python -m venv build/clients.new
build/clients.new/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes \
    -r babylon_rl_tests/serving/python_packages/requirements.lock
mv build/clients.new build/clients
