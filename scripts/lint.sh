#!/usr/bin/env bash
# Style, types and the import contract; all of them run, and one that fails fails the whole.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()
check() {
    local name="$1" start=$SECONDS
    shift
    if "$@"; then echo "$name: ok ($((SECONDS - start)) s)"; else failed+=("$name"); fi
}
check "ruff check" .venv/bin/ruff check --quiet --output-format concise .
check "ruff format" .venv/bin/ruff format --check --output-format concise .
check "mypy" .venv/bin/mypy --no-error-summary
unused_code() {
    local unused status=0
    unused=$(.venv/bin/vulture) || status=$?
    [ "$status" -eq 0 ] || [ "$status" -eq 3 ] || return "$status" # 3: something is unused
    ! grep -E "^babylon_rl/.*unused (function|method|class|property)" <<<"$unused"
}
check "unused code" unused_code
check "import contract" scripts/import_contract.sh
if [ "${#failed[@]}" -gt 0 ]; then
    printf -v names '%s, ' "${failed[@]}"
    echo "lint: failed: ${names%, }. \`make format\` rewrites what is only a matter of form." >&2
    exit 1
fi
