#!/usr/bin/env bash
# Make .venv with everything the kit needs, pinned. Used by `make setup`; needs Python 3.11 to 3.14.
# DETECTRON2=git|pypi chooses where Detectron2 comes from; unset, upstream where it answers, else PyPI.
# Where nvcc is, upstream's operators are compiled for this machine's GPUs; FORCE_CUDA=1 compiles them where no GPU is
# (a login node), for TORCH_CUDA_ARCH_LIST.
# DALI=1|0 takes DALI, which makes the fast configs' views on a GPU, or leaves it out; unset, where a GPU is.
# TORCH=cpu, cu126 and so on takes torch for the CPU or another CUDA from PyTorch's own index; or give an index's address.
# WHEELHOUSE=folder, made by `make wheelhouse`, is where everything comes from; the network is not asked.
set -euo pipefail
cd "$(dirname "$0")/.."
architectures=${TORCH_CUDA_ARCH_LIST:-}
source docker/versions.env

die() { echo "setup: $*" >&2; exit 2; }

case $(uname -s)-$(uname -m) in
  Linux-x86_64) ;;
  Linux-*) echo "setup: Linux on $(uname -m): the lock has packages for ARM64; nothing has been run on one" ;;
  Darwin-arm64) echo "setup: macOS: untested; packages exist for macOS 14 and later, and the stages would run on the CPU" ;;
  Darwin-*) die "PyTorch has no packages for Macs with Intel processors; take Linux, or a Mac with Apple's" ;;
  MINGW* | MSYS* | CYGWIN*) die "on Windows the kit runs inside WSL2: wsl --install, then make setup in the Ubuntu that it brings" ;;
  *) die "the kit runs on Linux, and its CPU stages on macOS: found $(uname -s)" ;;
esac

usable='import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
find_python() {
  local name names=(python3 python3.12 python3.13 python3.11 python3.14 python)  # the system's own first
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")  # a path may hold blanks
  for name in "${names[@]}"; do
    if "$name" -c "$usable" 2>/dev/null; then echo "$name"; return; fi
  done
  return 1
}

on() { case $1 in 0 | no | false) return 1 ;; esac; }
[ -z "${TORCH:-}" ] || [ -z "${DALI:-}" ] || ! on "$DALI" ||
  die "DALI=1 and TORCH=$TORCH exclude each other: DALI is for the CUDA of the lock's torch"
if [ -n "${WHEELHOUSE:-}" ]; then
  [ -d "$WHEELHOUSE" ] || die "found no folder WHEELHOUSE=$WHEELHOUSE; make one where the network is: make wheelhouse"
  WHEELHOUSE=$(cd "$WHEELHOUSE" && pwd)
  [ -z "${TORCH:-}" ] || die "a wheelhouse holds the lock's torch: leave out TORCH=$TORCH"
  DETECTRON2=${DETECTRON2:-pypi}
fi

if [ -n "${PYTHON:-}" ] || ! .venv/bin/python -c "import pip; $usable" 2>/dev/null
then
  python=$(find_python) ||
    die "found no Python 3.11 to 3.14 with venv; install one (Debian, Ubuntu: apt install python3-venv), or name it: make setup PYTHON=/path/to/python3.12"
  echo "setup: .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv ||
    { rm -rf .venv; die "$python cannot make a virtual environment; install its venv module (python3-venv)"; }
fi
# What is installed counts only once all of it is.
rm -f .venv/complete

extras=(detectron2 openselfsup dev)
if [ -n "${DALI:-}" ]; then on "$DALI" && extras+=(dali)
elif [ -z "${TORCH:-}" ] && nvidia-smi >/dev/null 2>&1; then extras+=(dali); fi

export UV_PYTHON=$PWD/.venv/bin/python PATH=$PWD/.venv/bin:$PATH
if [ -z "${WHEELHOUSE:-}" ]; then
  echo "setup: packages of docker/requirements.lock (torch with its CUDA libraries: 4.8 GB on disk)"
  python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
else
  here=$(python -c 'import platform, sys; print("{}.{}".format(*sys.version_info), platform.machine())')
  [ "$(cat "$WHEELHOUSE/made-for" 2>/dev/null)" = "$here" ] ||
    die "$WHEELHOUSE is not a wheelhouse for $here; make one where the network is: make wheelhouse FOR=${here% *} MACHINE=${here#* }"
  echo "setup: packages of $WHEELHOUSE, verified by docker/requirements.lock"
  export UV_CONFIG_FILE=$PWD/.venv/wheelhouse.toml
  printf "no-index = true\nfind-links = ['%s']\n" "$WHEELHOUSE" >"$UV_CONFIG_FILE"
  python -m pip install --quiet --disable-pip-version-check --no-index --find-links "$WHEELHOUSE" "uv==$UV_VERSION"
fi
scripts/packages.sh "${extras[@]}"
install() { uv pip install --quiet "$@"; }
remove() { uv pip uninstall --quiet "$@" 2>/dev/null || true; }
[ -z "${DALI:-}" ] || on "$DALI" || remove nvidia-dali-cuda130
# Python code alone: from a checkout, OPENSELFSUP=folder, the other engine of `make pretrain` runs.
PYTHONPATH=$PWD/scripts/exec_into_locals \
  install --no-deps --no-build-isolation --require-hashes -r - <<<"mmcv==$MMCV_VERSION --hash=sha256:$MMCV_SHA256"

upstream_answers() {
  command -v git >/dev/null && command -v g++ >/dev/null &&
    GIT_TERMINAL_PROMPT=0 timeout 15 git ls-remote --quiet "$DETECTRON2_URL" HEAD >/dev/null 2>&1
}
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
triplet --version >/dev/null || die "the kit was installed but does not start"
touch .venv/complete
echo "setup: done; next: make demo"
