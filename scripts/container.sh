#!/usr/bin/env bash
# The image of docs/howto/deploy/Dockerfile, made and tried without a daemon and without a hub. debootstrap makes the base that the Dockerfile
# names, with Debian's Python; buildah builds. In a container of the image hours are played, judged and trained on by the dry trainer, then
# the services of compose.yaml run with the test's database in the place of the image of Postgres.
# It needs root, the package registries, 6 GB of disk and five minutes or more; arguments go to pytest. Base and layers are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_state_directory
without_own_settings
for program in buildah debootstrap; do
    command -v "$program" >/dev/null && [ "$(id -u)" = 0 ] && continue
    echo "container: skipped: root, buildah and debootstrap are needed. Debian: apt-get install buildah debootstrap"
    exit 0
done
file=docs/howto/deploy/Dockerfile
base=$(sed -n 's/^FROM \(python:[^ ]*\) .*/docker.io\/library\/\1/p' "$file" | head -n 1)
place="$(state_directory)/container"
# chroot isolation needs neither namespaces of its own nor cgroups: it works inside a container too. The network is the machine's.
export BUILDAH_ISOLATION=chroot
stored=(buildah --root "$place/storage" --runroot "$place/run")
buildah() { command "${stored[@]}" "$@"; }
mkdir -p "$place"

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    # The release of Debian with this Python.
    debootstrap --variant=minbase --include=ca-certificates,python3-pip,python-is-python3 bookworm "$place/root" > "$place/debootstrap.log"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$place/root" / >/dev/null
    buildah commit --quiet "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
    rm -rf "$place/root"
fi
# Debian marks its Python as managed. Certificates and wheels are this machine's.
printf '[global]\nbreak-system-packages = true\n' > "$place/pip.conf"
mounts=(--volume "$place/pip.conf:/etc/pip.conf:ro" --volume /etc/ssl/certs:/etc/ssl/certs:ro)
if [ -d "${PIP_FIND_LINKS:-}" ]; then
    echo "find-links = /mnt" >> "$place/pip.conf"
    mounts+=(--volume "$PIP_FIND_LINKS:/mnt:ro")
fi
buildah build --quiet --layers --pull-never --network host "${mounts[@]}" --file "$file" --tag babylon-rl . > "$place/build.log" 2>&1 || {
    tail -n 20 "$place/build.log" >&2
    exit 1
}
buildah images babylon-rl

container=$(buildah from --pull-never babylon-rl)
trap 'buildah rm "$container" >/dev/null' EXIT
program=$(buildah inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
run() {
    echo "container: \$ $*"
    buildah run "$container" -- "$@"
}
run id
run "$program" spawn-agents --agents 6 --windows 4
run "$program" score
run env TRAIN_RL_LOCAL=true LOCAL_BASE_MODEL=dry "$program" train
run "$program" batches
BABYLON_RL_IN="${stored[*]} run $container --" .venv/bin/python -m pytest -q -p no:cacheprovider babylon_rl_tests/setup/test_compose_processes.py "$@"
