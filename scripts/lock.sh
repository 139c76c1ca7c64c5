#!/usr/bin/env bash
# Derive docker/requirements.lock from pyproject.toml and the pins of docker/versions.env: `make lock`.
# What it holds already stays as it is where it can; `make lock ARGS=--upgrade` takes the newest of all else.
set -euo pipefail
cd "$(dirname "$0")/.."
constraints=$(mktemp) lock=$(mktemp docker/.requirements.XXXXXX)
trap 'rm -f "$constraints" "$lock"' EXIT
# NAME_VERSION=1.2 -> name==1.2
sed -n 's/^\([A-Z0-9_]*\)_VERSION=/\L\1==/p' docker/versions.env | grep -v -e '^uv==' -e '^detectron2_pypi==' -e '^mmcv==' |
  tr _ - >"$constraints"
cp docker/requirements.lock "$lock"
.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
  --generate-hashes --no-header --no-annotate --quiet --constraints "$constraints" --output-file "$lock" "$@"
chmod 644 "$lock"
mv "$lock" docker/requirements.lock
echo "lock: $(grep -c '==' docker/requirements.lock) packages"
