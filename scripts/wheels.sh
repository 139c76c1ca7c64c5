#!/usr/bin/env bash
# Put into one folder, as wheels, what the kit needs and a bare GPU machine lacks: wheels.sh [FOLDER [NAME...]].
# For Python 3.12 on x86-64, at the versions of docker/requirements.lock, below 64 MiB. What is on PyPI as source alone is
# pure Python and is built here. The probe takes them from artifacts/wheels by itself; the GPU tests want them installed:
#   python3 -m pip install --no-index --no-deps artifacts/wheels/*.whl && make test-gpu PYTHON=python3
set -euo pipefail
cd "$(dirname "$0")/.."
source docker/versions.env
folder=${1:-artifacts/wheels}
shift || true
names=(
  pydantic pydantic-core annotated-types typing-inspection typing-extensions  # configs and records
  omegaconf antlr4-python3-runtime pyyaml
  pycocotools ultrafast-pycocotools
  pb1-detectron2 fvcore iopath portalocker yacs termcolor tabulate cloudpickle hydra-core tqdm packaging  # Detectron2
  matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six
  pycurl certifi nvidia-ml-py
  hypothesis sortedcontainers pytest-timeout  # the GPU tests
)
[ $# = 0 ] || names=("$@")
[ -x .venv/bin/uv ] || { echo "wheels: run make setup first" >&2; exit 2; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The lines of the lock that belong to a package, its hashes included.
locked() { awk -v name="$1" '/^[^ ]/ { mine = index($0, name "==") == 1 } mine' docker/requirements.lock; }

for name in "${names[@]}"; do
  if [ "$name" = pb1-detectron2 ]; then
    echo "pb1-detectron2==$DETECTRON2_PYPI_VERSION --hash=sha256:$DETECTRON2_PYPI_SHA256" >"$work/wanted"
  else
    locked "$name" >"$work/wanted"
    [ -s "$work/wanted" ] || { echo "wheels: $name is not in docker/requirements.lock" >&2; exit 2; }
  fi
  # Detectron2 calls its wheel this Python's, though nothing in it is compiled.
  there=(--python-version 3.12 --python-platform x86_64-manylinux_2_28)
  [ "$name" != pb1-detectron2 ] || there=()
  .venv/bin/uv pip install --quiet --python .venv/bin/python --target "$work/$name" --no-deps --no-build-isolation \
    "${there[@]}" --require-hashes -r "$work/wanted" \
    --config-settings-package 'pb1-detectron2:--global-option=build_py' \
    --config-settings-package 'pb1-detectron2:--build-option=--skip-build'
  find "$work/$name" -name '*.so' | grep -q . ||
    sed -i 's/^Tag: .*/Tag: py3-none-any/; s/^Root-Is-Purelib: .*/Root-Is-Purelib: true/' "$work/$name"/*.dist-info/WHEEL
  rm -rf "$work/$name"/{bin,.lock,share}
  .venv/bin/python -m wheel pack --dest-dir "$folder" "$work/$name" >/dev/null
done
size=$(du -sk "$folder" | cut -f1)
echo "wheels: $(find "$folder" -name '*.whl' | wc -l) in $folder, $((size / 1024)) MiB"
[ "$size" -le $((64 * 1024)) ] || { echo "wheels: more than 64 MiB, which a bare machine may not take" >&2; exit 1; }
