# Sourced by everything that make starts: where the state directory is, and that caches of other people's libraries go into it.
# Nothing here changes a variable that the user has set, but for PYTHONDONTWRITEBYTECODE and without_own_settings.

# The state directory as an absolute path: BABYLON_RL_HOME from the environment, else from .env, else .babylon.
state_directory() {
    local home="${BABYLON_RL_HOME:-}"
    if [ -z "$home" ] && [ -f .env ]; then
        home=$(sed -n 's/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}BABYLON_RL_HOME[[:space:]]*=[[:space:]]*//p' .env | tail -n 1 | sed 's/^["'\'']//; s/["'\''][[:space:]]*$//')
    fi
    home="${home:-.babylon}"
    case "$home" in
        "~") home="$HOME" ;;
        "~/"*) home="$HOME/${home#\~/}" ;;
    esac
    case "$home" in
        /*) ;;
        *) home="$PWD/$home" ;;
    esac
    if [ -d "$home" ]; then (cd "$home" && pwd -P); else printf '%s\n' "$home"; fi
}

# Exports what keeps libraries from writing elsewhere.
use_state_directory() {
    local state cache
    state=$(state_directory)
    cache="$state/cache"
    export HF_HOME="${HF_HOME:-$cache/huggingface}"
    export MPLCONFIGDIR="${MPLCONFIGDIR:-$cache/matplotlib}"
    export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$cache/torchinductor}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$cache/triton}"
    export WANDB_DIR="${WANDB_DIR:-$cache}" WANDB_CACHE_DIR="${WANDB_CACHE_DIR:-$cache/wandb}"
    export WANDB_CONFIG_DIR="${WANDB_CONFIG_DIR:-$cache/wandb-config}" WANDB_DATA_DIR="${WANDB_DATA_DIR:-$cache/wandb-data}"
    export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$cache}"
    export DAGSTER_DISABLE_TELEMETRY="${DAGSTER_DISABLE_TELEMETRY:-yes}" DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
    export HF_HUB_DISABLE_TELEMETRY="${HF_HUB_DISABLE_TELEMETRY:-1}" LITELLM_LOCAL_MODEL_COST_MAP="${LITELLM_LOCAL_MODEL_COST_MAP:-True}"
    export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # babylon_rl/models/threads.py
    unset PYTHONDONTWRITEBYTECODE # each program that is started would compile its libraries again: 10 s for those of the models
    # Dagster and multiprocessing put unix sockets into TMPDIR, whose paths end at 107 bytes: a deep clone keeps the system's.
    if [ -z "${TMPDIR:-}" ] && [ "${#state}" -le 64 ] && mkdir -p "$state/tmp" 2>/dev/null; then
        export TMPDIR="$state/tmp"
    fi
}

# Takes the user's own services, keys and choices out of the environment, all but the state directory: what .env.example names.
without_own_settings() {
    local variable
    for variable in $(sed -n 's/^#* *\([A-Z][A-Z_]*\)=.*/\1/p' .env.example); do
        [ "$variable" = BABYLON_RL_HOME ] || unset "$variable"
    done
}
