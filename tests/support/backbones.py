"""State dicts as a training leaves them, and the names of their tensors in other projects."""

import re

import torch

from triplet.weights.initial import AUTHORS


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


def caffe2_name(name):
    """The inverse of what the kit does, written down from the names in MSRA's file."""
    parts = {"conv": "{}", "bn": "{}_bn"}
    stem = re.fullmatch(r"(conv|bn)1\.(weight|bias)", name)
    if stem:
        return "conv1_w" if stem[1] == "conv" else f"res_conv1_bn_{'s' if stem[2] == 'weight' else 'b'}"
    layer, block, rest = re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", name).groups()
    if rest.startswith("downsample"):
        branch, kind = "branch1", "conv" if ".0." in rest else "bn"
    else:
        kind, number = re.match(r"(conv|bn)(\d)", rest).groups()
        branch = f"branch2{'abc'[int(number) - 1]}"
    ending = "b" if rest.endswith("bias") else "s" if kind == "bn" else "w"
    return f"res{int(layer) + 1}_{block}_{parts[kind].format(branch)}_{ending}"


def theirs(name: str) -> str:
    """Our name of a tensor -> the one in their checkpoint."""
    ((prefix, ours),) = ((a, b) for a, b in AUTHORS.items() if name.startswith(b))
    return prefix + name.removeprefix(ours)
