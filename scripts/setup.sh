#!/usr/bin/env bash
# Make .venv with everything the kit needs, pinned. Used by `make setup`; needs Python 3.11 or 3.12.
# DETECTRON2=git|pypi chooses where Detectron2 comes from; unset, upstream where it answers, else PyPI.
# Where nvcc is, upstream's operators are compiled for this machine's GPUs; FORCE_CUDA=1 compiles them where no GPU is
# (a login node), for TORCH_CUDA_ARCH_LIST.
set -euo pipefail
cd "$(dirname "$0")/.."
architectures=${TORCH_CUDA_ARCH_LIST:-}
source docker/versions.env

die() { echo "setup: $*" >&2; exit 2; }

find_python() {
  local name names=(python3.12 python3.11 python3 python)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")  # a path may hold blanks
  for name in "${names[@]}"; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null
    then echo "$name"; return; fi
  done
  return 1
}

usable='import sys, pip; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])'
if [ -n "${PYTHON:-}" ] || ! .venv/bin/python -c "$usable" 2>/dev/null
then
  python=$(find_python) ||
    die "found no Python 3.11 or 3.12 with venv; install one (Debian, Ubuntu: apt install python3-venv), or name it: make setup PYTHON=/path/to/python3.12"
  echo "setup: .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv ||
    { rm -rf .venv; die "$python cannot make a virtual environment; install its venv module (python3-venv)"; }
fi
# What is installed counts only once all of it is.
rm -f .venv/complete

echo "setup: packages of docker/requirements.lock (torch with its CUDA libraries: 4.8 GB on disk)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
install() { .venv/bin/uv pip install --quiet --python .venv/bin/python "$@"; }
install --require-hashes -r pyproject.toml --extra detectron2 --extra openselfsup --extra dev \
  --constraints docker/requirements.lock
# Python code alone: from a checkout, OPENSELFSUP=folder, the other engine of `make pretrain` runs.
install --no-deps --no-build-isolation --require-hashes -r - <<<"mmcv==$MMCV_VERSION --hash=sha256:$MMCV_SHA256"

upstream_answers() {
  command -v git >/dev/null && command -v g++ >/dev/null &&
    GIT_TERMINAL_PROMPT=0 timeout 15 git ls-remote --quiet "$DETECTRON2_URL" HEAD >/dev/null 2>&1
}
remove() { .venv/bin/uv pip uninstall --quiet --python .venv/bin/python "$@" 2>/dev/null || true; }
from_git() {
  echo "setup: Detectron2 ${DETECTRON2_COMMIT:0:8} of upstream (compiles for some minutes)"
  remove pb1-detectron2
  if [ -z "$architectures" ] && nvidia-smi >/dev/null 2>&1; then unset TORCH_CUDA_ARCH_LIST  # torch asks the GPUs
  else export TORCH_CUDA_ARCH_LIST=${architectures:-$TORCH_CUDA_ARCH_LIST}; fi
  scripts/with_cuda.sh .venv/bin/python .venv/bin/uv pip install --quiet --python .venv/bin/python \
    --no-deps --no-build-isolation "detectron2 @ git+$DETECTRON2_URL@$DETECTRON2_COMMIT"
}
from_pypi() {
  echo "setup: Detectron2 $DETECTRON2_PYPI_VERSION from PyPI, not compiled"
  remove detectron2
  scripts/detectron2_pypi.sh .venv/bin
}
case ${DETECTRON2:-auto} in
  git) from_git ;;
  pypi) from_pypi ;;
  auto) { upstream_answers && from_git; } || from_pypi ;;
  *) die "DETECTRON2 is git or pypi: found '$DETECTRON2'" ;;
esac

install --no-deps --no-build-isolation --editable .
.venv/bin/triplet --version >/dev/null || die "the kit was installed but does not start"
touch .venv/complete
echo "setup: done; next: make demo"
