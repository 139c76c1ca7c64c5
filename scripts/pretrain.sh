#!/usr/bin/env bash
# The pretrain service: one process a GPU, as `make pretrain` starts them. GPUS, NODES and RDZV come with the
# container. `exec`, so that signals reach the program and not this shell.
set -euo pipefail

export TRIPLET_PROCESSES=$((GPUS * NODES))
[ "$TRIPLET_PROCESSES" != 1 ] || exec triplet pretrain "$@"
# A container without a network cannot look up its own name, by which the processes would find each other.
[ "$NODES" != 1 ] || address=localhost
exec python -m triplet.launch --nnodes "$NODES" --nproc-per-node "$GPUS" ${address:+--local-addr "$address"} \
  --rdzv-backend c10d --rdzv-endpoint "$RDZV" --no-python -- triplet pretrain "$@"
