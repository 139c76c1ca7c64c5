#!/bin/sh
# Install packages of the lock into the image: packages.sh EXTRA. With TORCH_INDEX, torch comes from there at the
# same version, for another CUDA than the lock's, and DALI is left out.
set -eu
set -- --require-hashes -r /lock/pyproject.toml --extra "$1" --constraints /lock/requirements.lock
if [ -n "${TORCH_INDEX:-}" ]; then
  uv pip install --index-url "$TORCH_INDEX" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"
  printf 'torch\ntorchvision\nnvidia-dali-cuda130\n' >/tmp/installed
  set -- "$@" --excludes /tmp/installed
fi
uv pip install "$@"
rm -f /tmp/installed
