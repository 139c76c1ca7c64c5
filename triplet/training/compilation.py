"""torch.compile, as every training here uses it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from triplet import paths, toolchain
from triplet.errors import KitError


def compile_networks(networks: Iterable[nn.Module], **options: Any) -> None:
    """torch.compile each network in place; names and tensors stay.

    Args:
        networks: that are to be a graph each, at least one.
        options: of torch.compile. ``dynamic=True`` compiles for any resolution (two graphs a network, for
            even and odd maps), not for each resolution anew, which pays where they are few.

    Raises:
        KitError: no C compiler or no headers of Python, which torch.compile builds its launchers with.
    """
    networks = list(networks)
    if lacking := toolchain.missing(gpu=next(networks[0].parameters()).is_cuda):
        raise KitError(
            f"compile=true needs {' and '.join(lacking)}: install g++ and python3-dev (whatever the system "
            "calls them), or add compile=false"
        )
    toolchain.keep_compiled_code(paths.root("checkpoints") / ".compiled")
    torch._dynamo.config.optimize_ddp = False  # else graphs are split at DDP's buckets
    torch._dynamo.config.recompile_limit = 64  # the default, 8, may be fewer than there are resolutions
    for network in networks:
        network.compile(**options)
