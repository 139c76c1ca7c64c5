"""What a pretraining writes and goes on from."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from triplet import files
from triplet.errors import KitError
from triplet.pretrain.networks import Networks

FORMAT = "triplet-kit/1"


def save(path: Path, networks: Networks, optimizer: Optimizer | None, iteration: int, epoch: int) -> None:
    """Write a checkpoint atomically.

    Its keys: ``format``; ``iteration`` and ``epoch`` (both count what is done); ``networks`` with
    ``online.backbone.*``, ``online.projector.*``, ``predictor.*``, ``target.*``; ``optimizer`` (None
    in a finished run's).
    """
    state = {
        "format": FORMAT,
        "iteration": iteration,
        "epoch": epoch,
        "networks": networks.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
    }
    with files.atomic(path) as temporary:
        torch.save(state, temporary)


def load(path: Path, networks: Networks, optimizer: Optimizer) -> int:
    """Restore networks and optimiser in place and return the iteration to go on from."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["iteration"])
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise KitError(f"{path} cannot be resumed ({reason}); start over with --force") from None
