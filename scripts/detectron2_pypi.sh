#!/usr/bin/env bash
# Install PyPI's sdist of Detectron2, verified and not compiled: detectron2_pypi.sh ENVIRONMENT/bin. The environment
# holds uv and torch already. For scripts/setup.sh and the image alike.
set -euo pipefail
source "$(dirname "$0")/../docker/versions.env"

"$1/uv" pip install --quiet --python "$1/python" --no-deps --no-build-isolation --require-hashes \
  --config-settings-package 'pb1-detectron2:--global-option=build_py' \
  --config-settings-package 'pb1-detectron2:--build-option=--skip-build' \
  -r <(echo "pb1-detectron2==$DETECTRON2_PYPI_VERSION --hash=sha256:$DETECTRON2_PYPI_SHA256")
