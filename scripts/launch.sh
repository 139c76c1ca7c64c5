#!/usr/bin/env bash
# A stage of several processes, one a GPU, as make starts them: launch.sh STAGE ARGUMENTS. GPUS, NODES and RDZV come
# with the container, or with the job of `make submit`. `exec`, so that signals reach the program and not this shell.
set -euo pipefail

export TRIPLET_PROCESSES=$((GPUS * NODES))
[ "$TRIPLET_PROCESSES" != 1 ] || exec triplet "$@"
# A container without a network cannot look up its own name, by which the processes would find each other.
[ "$NODES" != 1 ] || address=localhost
exec python -m triplet.launch --nnodes "$NODES" --nproc-per-node "$GPUS" ${address:+--local-addr "$address"} \
  --rdzv-backend c10d --rdzv-endpoint "$RDZV" --no-python -- triplet "$@"
