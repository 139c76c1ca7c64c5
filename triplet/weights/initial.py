"""Start a pretraining from existing weights."""

from pathlib import Path

import torch
from torch import Tensor

from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.weights.read import read_backbone, read_state

# The authors' raw epoch file -> ours. Their `backbone.*` is a second copy of `online_net.0.*`.
AUTHORS = {
    "online_net.0.": "online.backbone.",
    "online_net.1.": "online.projector.",
    "target_net.0.": "target.backbone.",
    "target_net.1.": "target.projector.",
    "head.predictor.": "predictor.",
}


@torch.no_grad()
def load_initial(path: Path, networks: Networks) -> str:
    """Load a file into the networks; return a phrase about what was in it.

    A complete file (the kit's own checkpoint, the authors' raw epoch) fills all networks. Any other file
    that ``read_backbone`` reads fills the online and the target backbone; projector and predictor keep
    their random weights.

    Raises:
        KitError: the file is something else, or has another architecture; nothing is filled.
    """
    backbone = read_backbone(path)  # whole, finite, the right names
    if backbone.caffe2:
        raise KitError(f"{path} is for BGR images and other strides; start from weights for RGB")
    ours, theirs = networks.online.backbone.state_dict(), backbone.state
    if ours.keys() != theirs.keys() or any(ours[key].shape != value.shape for key, value in theirs.items()):
        raise KitError(
            f"{path} is a ResNet-{backbone.depth} of width {backbone.width}, the config's is another; "
            f"set model.depth={backbone.depth} model.width={backbone.width}, or give other weights"
        )
    whole = _whole(read_state(path)[0])
    if whole is None:
        for encoder in (networks.online, getattr(networks, "target", None)):
            if encoder is not None:
                encoder.backbone.load_state_dict(theirs)
        choice = f" ({backbone.choice})" if backbone.choice else ""
        return f"{backbone.format} backbone{choice}; projector and predictor from the seed"
    expected = networks.state_dict()
    for key, value in expected.items():
        found = whole.get(key)
        if found is None and key.endswith("num_batches_tracked"):
            whole[key] = value
        elif found is None or found.shape != value.shape or not found.isfinite().all():
            what = "is missing" if found is None else f"has shape {tuple(found.shape)} or is not finite"
            raise KitError(
                f"{path}: {key} {what}, expected {tuple(value.shape)}; is model.hidden the same?"
            )
    networks.load_state_dict({key: whole[key] for key in expected})
    return f"{backbone.format} networks, all of them"


def _whole(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return all networks under the kit's names; None if the file has only a backbone."""
    if any(key.startswith("online.projector.") for key in state):
        return dict(state)
    prefix = next((key.partition("online_net.")[0] for key in state if "online_net." in key), None)
    if prefix is None:
        return None
    renamed = {}
    for key, value in state.items():
        for theirs, ours in AUTHORS.items():
            if key.startswith(prefix + theirs):
                renamed[ours + key.removeprefix(prefix + theirs)] = value
    return renamed
