#!/usr/bin/env bash
# Installs the npm packages of test_node_client.py into build/node, as their lock says, whole or not at all.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/node.new build/node
mkdir -p build/node.new
cp babylon_rl_tests/serving/node_packages/*.json build/node.new
npm ci --prefix build/node.new --ignore-scripts --no-audit --no-fund --loglevel=error
mv build/node.new build/node
