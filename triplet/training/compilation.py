"""Compilation of networks with torch.compile, in the way that every training here uses it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from triplet import paths, toolchain
from triplet.errors import KitError


def compile_networks(networks: Iterable[nn.Module], **options: Any) -> None:
    """Compile each network in place; names and tensors stay.

    Args:
        networks: at least one network, each to become one graph.
        options: options of torch.compile. ``dynamic=True`` compiles once for all resolutions (two graphs
            per network, for even and odd maps). Compiling for each resolution pays off if there are few.

    Raises:
        KitError: there is no C compiler or there are no Python headers, which torch.compile needs.
    """
    networks = list(networks)
    if lacking := toolchain.missing(gpu=next(networks[0].parameters()).is_cuda):
        raise KitError(
            f"compile=true needs {' and '.join(lacking)}: install g++ and python3-dev (whatever the system "
            "calls them), or add compile=false"
        )
    toolchain.keep_compiled_code(paths.root("checkpoints") / ".compiled")
    torch._dynamo.config.optimize_ddp = False  # otherwise graphs are split at DDP's buckets
    torch._dynamo.config.recompile_limit = 64  # there may be more resolutions than the default of 8
    for network in networks:
        network.compile(**options)
