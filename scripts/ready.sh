#!/usr/bin/env bash
# Whether containers can start here; one line about what is missing. Before every stage with RUNTIME=docker.
# `ready.sh engine` asks only whether an engine with compose answers, which is all that needs no image.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "docker: $*" >&2; exit 2; }

command -v docker >/dev/null || die "found no docker; install Docker Engine with its compose and buildx plug-ins"
docker compose version >/dev/null 2>&1 || die "found docker without compose; install its package docker-compose-plugin"
docker info >/dev/null 2>&1 ||
  die "no engine answers; start it (systemctl start docker) and let this user use it (usermod -aG docker $(id -un))"
[ "${1:-}" != engine ] || exit 0
[ -e .env ] || die "found no .env, and so no image of this checkout; run: make build"
config=$(docker compose config 2>&1) ||
  die "compose does not take compose.yaml and .env ($(tail -n 1 <<<"$config")); mend .env, or install Docker Engine 26 or newer with its plug-ins"
image=$(sed -n 's/^ *image: //p' <<<"$config" | sed -n 1p)
docker image inspect "$image" >/dev/null 2>&1 ||
  docker pull --quiet "$image" >/dev/null 2>&1 || die "found no image $image; run: make build"
if grep -q 'driver: nvidia' <<<"$config" && ! command -v nvidia-container-runtime-hook >/dev/null; then
  die "COMPOSE_FILE in .env asks for GPUs, and nvidia-container-toolkit is missing; install it and restart the engine, or leave compose.gpu.yaml out of COMPOSE_FILE"
fi
