#!/usr/bin/env bash
# Run a command that may compile for CUDA: with_cuda.sh PYTHON COMMAND ... PYTHON has torch. For scripts/setup.sh and
# the image alike. torch's headers include those of cuSPARSE, cuBLAS and cuSOLVER: a full toolkit has them, one that is
# little more than nvcc lacks them. Then they come from the wheels that torch depends on, and are searched last.
set -euo pipefail
python=$1
shift

[ -z "${CUDA_HOME:-}" ] || PATH=$CUDA_HOME/bin:$PATH
if command -v nvcc >/dev/null; then
  # nvcc may be a link or a wrapper, which torch takes for the toolkit's own; it knows itself where the rest is.
  top=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p') || true
  [ -z "$top" ] || CUDA_HOME=$(cd "$top" && pwd -P)
  export CUDA_HOME
  if ! nvcc -E -x cu - <<<'#include <cusparse.h>' >/dev/null 2>&1; then
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for headers in "$packages"/nvidia/*/include; do
      CPLUS_INCLUDE_PATH=${CPLUS_INCLUDE_PATH:+$CPLUS_INCLUDE_PATH:}$headers
    done
    export CPLUS_INCLUDE_PATH
  fi
elif [ "${FORCE_CUDA:-0}" = 1 ]; then
  echo "cuda: FORCE_CUDA=1 compiles for CUDA: found no nvcc on the PATH nor in CUDA_HOME" >&2
  exit 2
fi
exec "$@"
