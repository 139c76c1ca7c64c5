#!/bin/sh
# Install packages of the lock by uv, into the environment in UV_PYTHON: packages.sh EXTRA... For scripts/setup.sh and the
# image alike. TORCH=cpu, cu128 and so on, or the address of a package index, takes torch and torchvision from there, at
# the version pinned in docker/versions.env, and leaves out DALI, which is for the lock's CUDA.
set -eu
cd "$(dirname "$0")/.."
if [ -n "${TORCH:-}" ]; then
  [ -n "${TORCH_VERSION:-}" ] || . docker/versions.env  # the image has them as arguments
  case $TORCH in
    *://*) from=--default-index ;;
    *) from=--torch-backend ;;
  esac
  uv pip install --quiet "$from" "$TORCH" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"
  excluded=$(mktemp)
  trap 'rm -f "$excluded"' EXIT
  printf 'torch\ntorchvision\nnvidia-dali-cuda130\n' >"$excluded"
fi
for extra; do
  shift
  set -- "$@" --extra "$extra"
done
uv pip install --quiet --require-hashes -r pyproject.toml "$@" --constraints docker/requirements.lock \
  ${excluded:+--excludes "$excluded"}
