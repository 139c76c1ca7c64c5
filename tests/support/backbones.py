"""State dicts of backbones as a training leaves them."""

import torch


def see_images(state):
    """Give BN statistics other than the initial ones, in place; returns the state dict."""
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
    return state


def same(backbone, state):
    """Return whether a backbone that was read holds exactly the tensors of a state dict."""
    return backbone.state.keys() == state.keys() and all(
        torch.equal(backbone.state[k], v) for k, v in state.items()
    )
