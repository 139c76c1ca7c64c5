#!/usr/bin/env bash
# Delete what the kit made, after asking: clean.sh local|docker datasets|checkpoints|reports|image. YES=1: do not ask.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "clean: $*" >&2; exit 2; }
ask() {
  [ "${YES:-}" != 1 ] || return 0
  [ -t 0 ] || die "would delete $1; without a terminal to ask at, say YES=1"
  read -r -p "delete $1? [y/N] " answer
  [ "$answer" = y ] || die "left as it is"
}

runtime=$1 what=$2 moved=TRIPLET_${2^^}
if [ "$what" != image ] && { [ -n "${!moved:-}" ] || grep -qs "^$moved=." .env; }; then
  die "$moved names a folder of yours: delete it by hand"
fi
[ "$runtime" != docker ] || [ "$what" = reports ] || scripts/ready.sh engine || exit 2  # reports lie on the host
if [ "$what" = image ]; then
  mapfile -t images < <(docker image ls --quiet --no-trunc "${IMAGE:-triplet-kit}" | sort -u)
  [ "${#images[@]}" -gt 0 ] || { echo "clean: no image"; exit; }
  ask "$(docker image ls --format '{{.Repository}}:{{.Tag}} ({{.Size}})' "${IMAGE:-triplet-kit}" | paste -sd ' ')"
  docker image rm --force "${images[@]}" >/dev/null
elif [ "$runtime" = docker ] && [ "$what" != reports ]; then
  project=$(docker compose config | sed -n 's/^name: //p')
  volume=$(docker volume ls --quiet --filter "label=com.docker.compose.project=$project" \
    --filter "label=com.docker.compose.volume=$what")
  [ -n "$volume" ] || { echo "clean: no volume $what"; exit; }
  ask "volume $volume"
  # A container that never started still holds it.
  docker ps --all --quiet --filter "volume=$volume" --filter status=created --filter status=exited |
    xargs --no-run-if-empty docker rm >/dev/null
  docker volume rm "$volume" >/dev/null || die "a container is using it: docker ps --filter volume=$volume"
else
  [ ! -L "$what" ] || die "$PWD/$what is a link of yours: delete what it names by hand"
  [ -d "$what" ] || { echo "clean: no folder $what"; exit; }
  ask "$PWD/$what ($(du -sh "$what" | cut -f1))"
  find "$what" -mindepth 1 -delete  # the folder itself keeps its owner, whom the containers run as
fi
echo "clean: deleted $what"
