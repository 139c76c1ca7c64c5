#!/usr/bin/env bash
# Put into one folder, as wheels, what the kit needs and a bare GPU machine lacks: wheels.sh [FOLDER [NAME...]].
# For Python 3.12 on x86-64, at the versions of docker/requirements.lock, below 64 MiB. What is on PyPI as source alone is
# pure Python and is built here. The probe takes them from artifacts/wheels by itself; the GPU tests want them installed:
#   python3 -m pip install --no-index --no-deps artifacts/wheels/*.whl && make test-gpu PYTHON=python3
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-artifacts/wheels}
shift || true
names=(
  pydantic pydantic-core annotated-types typing-inspection typing-extensions  # configs and records
  omegaconf antlr4-python3-runtime pyyaml
  pycocotools hotcoco ultrafast-pycocotools
  pb1-detectron2 fvcore iopath portalocker yacs termcolor tabulate cloudpickle hydra-core tqdm packaging  # Detectron2
  matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six
  pycurl certifi nvidia-ml-py
  hypothesis sortedcontainers pytest-timeout  # the GPU tests
)
[ $# = 0 ] || names=("$@")
[ -x .venv/bin/uv ] || { echo "wheels: run make setup first" >&2; exit 2; }
.venv/bin/python -m scripts.wheelhouse "$folder" --python 3.12 --machine x86_64 --only "${names[@]}"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for source in "$folder"/*.tar.gz; do
  [ -e "$source" ] || continue
  .venv/bin/uv pip install --quiet --python .venv/bin/python --target "$work/$source" --no-deps --no-build-isolation \
    --config-settings-package 'pb1-detectron2:--global-option=build_py' \
    --config-settings-package 'pb1-detectron2:--build-option=--skip-build' "$source"
  # Detectron2 calls its wheel this Python's, though nothing in it is compiled.
  sed -i 's/^Tag: .*/Tag: py3-none-any/; s/^Root-Is-Purelib: .*/Root-Is-Purelib: true/' "$work/$source"/*.dist-info/WHEEL
  rm -rf "$work/$source"/{bin,.lock,share}
  .venv/bin/python -m wheel pack --dest-dir "$folder" "$work/$source" >/dev/null
  rm "$source"
done
size=$(du -sk "$folder" | cut -f1)
echo "wheels: $(find "$folder" -name '*.whl' | wc -l) in $folder, $((size / 1024)) MiB"
[ "$size" -le $((64 * 1024)) ] || { echo "wheels: more than 64 MiB, which a bare machine may not take" >&2; exit 1; }
