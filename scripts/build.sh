#!/usr/bin/env bash
# Build the image and name it in .env, so that compose runs this one and records name it: `make build`.
# IMAGE=name (of a registry, to push it), DETECTRON2=git|pypi, OPENSELFSUP=1|0, FORCE_CUDA=1|0, TORCH_INDEX=address;
# DETECTRON2_SOURCE=folder and OPENSELFSUP_SOURCE=folder in place of GitHub; any name of docker/versions.env.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "build: $*" >&2; exit 2; }
revision() { git -C "$1" describe --always --dirty=+ --abbrev=12 --exclude='*' 2>/dev/null || echo unknown; }

export IMAGE=${IMAGE:-triplet-kit} DETECTRON2=${DETECTRON2:-git} OPENSELFSUP=${OPENSELFSUP:-1} FORCE_CUDA=${FORCE_CUDA:-1}
command -v docker >/dev/null || die "found no docker; install Docker Engine with its compose and buildx plug-ins"
docker buildx version >/dev/null 2>&1 ||
  die "found docker without buildx, which builds the image; install its package docker-buildx-plugin (Debian: docker-buildx)"
scripts/ready.sh engine || exit 2
case $DETECTRON2 in git | pypi) ;; *) die "DETECTRON2 is git or pypi: found '$DETECTRON2'" ;; esac
case $OPENSELFSUP in 0 | 1) ;; *) die "OPENSELFSUP is 0 or 1: found '$OPENSELFSUP'" ;; esac

COMMIT=$(revision .)
TAG=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' triplet/__init__.py)-${COMMIT/+/-modified}
# The same commit has the same times inside.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
DETECTRON2_REVISION="PyPI's sdist, not compiled"
OPENSELFSUP_REVISION="left out (OPENSELFSUP=0)"
pinned() { sed -n "s/^$1=//p" docker/versions.env; }
if [ "$DETECTRON2" = git ]; then
  DETECTRON2_REVISION=$([ -z "${DETECTRON2_SOURCE:-}" ] && pinned DETECTRON2_COMMIT || revision "$DETECTRON2_SOURCE")
  [ "$FORCE_CUDA" = 1 ] || DETECTRON2_REVISION+=" for the CPU alone (FORCE_CUDA=0)"
fi
if [ "$OPENSELFSUP" = 1 ]; then
  OPENSELFSUP_REVISION=$([ -z "${OPENSELFSUP_SOURCE:-}" ] && pinned OPENSELFSUP_COMMIT || revision "$OPENSELFSUP_SOURCE")
fi
export COMMIT TAG SOURCE_DATE_EPOCH DETECTRON2_REVISION OPENSELFSUP_REVISION
echo "build: $IMAGE:$TAG; Detectron2: $DETECTRON2_REVISION; OpenSelfSup: $OPENSELFSUP_REVISION"
docker compose --file docker/image.yaml --env-file docker/versions.env build image ||
  die "failed; where GitHub cannot be reached, name checkouts (DETECTRON2_SOURCE=folder OPENSELFSUP_SOURCE=folder) or leave them out (DETECTRON2=pypi OPENSELFSUP=0)"

# .env names the image by its ID: a tag moves, and a record must not.
if [ ! -e .env ]; then
  files=compose.yaml user=
  ! nvidia-smi >/dev/null 2>&1 || files+=:compose.gpu.yaml
  [ "$(id -u)" = 0 ] || user=$(id -u):$(id -g)
  sed -e "s|^COMPOSE_FILE=.*|COMPOSE_FILE=$files|" -e "s|^TRIPLET_USER=.*|TRIPLET_USER=$user|" .env.example >.env
fi
sed -i "s|^TRIPLET_IMAGE=.*|TRIPLET_IMAGE=$(docker image inspect --format '{{.Id}}' "$IMAGE")|" .env
# Docker would make it root's. The image's own user writes there when root runs this.
mkdir -p reports
[ "$(id -u)" != 0 ] || chown "$(docker run --rm --network none --entrypoint id "$IMAGE" -u)" reports
echo "build: done, named in .env; next: docker compose run --rm demo"
