"""Check the content of a weights file, and whether it is plausible for its method."""

from pathlib import Path
from typing import Any

from triplet.errors import KitError
from triplet.progress import say
from triplet.weights import read_backbone

TENSORS = 318
"""Tensors of a ResNet-50 without its classifier: one for each of 53 convolutions, 5 for each of 53 BN
layers."""
WIDTH = 64


def describe(path: Path, *, untrained: bool) -> dict[str, Any]:
    """Load a weights file safely and describe it.

    Args:
        path: file in any format that ``triplet.weights`` reads.
        untrained: whether the weights should be untrained, with BN statistics at their defaults.

    Returns:
        format, tensors, ignored (names in the file that are not the backbone's), variances (range of BN's).

    Raises:
        KitError: not a complete, finite ResNet-50 of the usual width; or BN statistics that contradict
            ``untrained``.
    """
    found = read_backbone(path)
    if found.choice:
        say(f"pull: {path.name}: {found.choice}")
    if (found.depth, found.width, len(found.state)) != (50, WIDTH, TENSORS):
        raise KitError(
            f"{path}: a ResNet-{found.depth} of width {found.width} with {len(found.state)} tensors, "
            f"expected a ResNet-50 of width {WIDTH} with {TENSORS}"
        )
    if found.default_statistics != untrained and not found.caffe2:
        state = "every BN statistic is its default" if found.default_statistics else "BN has seen images"
        raise KitError(f"{path}: {state}, expected {'initial' if untrained else 'pretrained'} weights")
    variances = [value for name, value in found.state.items() if name.endswith("running_var")]
    return {
        "format": found.format,
        "tensors": len(found.state),
        "ignored": len(found.ignored),
        "variances": [min(float(v.min()) for v in variances), max(float(v.max()) for v in variances)],
    }
