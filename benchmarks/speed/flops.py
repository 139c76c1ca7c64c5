"""Arithmetic of a step and peak of a GPU, for the model FLOP utilisation."""

import re

from triplet.pretrain.config import Model
from triplet.pretrain.estimate import encoder_flop
from triplet.pretrain.methods.common import predictor_flop
from triplet.pretrain.views import InputResolutions

# Dense bfloat16 with float32 accumulation, no sparsity, in FLOP/s, by a part of the device's name.
# H100 SXM and H200: NVIDIA's data sheets (1979 TFLOPS "with sparsity"). A100: its data sheet. RTX 4090: the
# Ada GPU architecture white paper, appendix A. RTX 3090: the Ampere GA102 white paper, appendix A.
PEAKS = {
    "H100 80GB HBM3": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
OTHERS = ("NVL", "MIG", "RTX 3090 Ti", "RTX 4090 D", "RTX 4090 Laptop")
"""Names of slower or faster GPUs that contain one of the names above."""


def peak(device_name: str) -> float | None:
    """Return the peak FLOP/s of a GPU; None for one that is not in the table."""
    if any(name in device_name for name in OTHERS):
        return None
    return next((flop for name, flop in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def step_flop(model: Model, sizes: InputResolutions) -> float:
    """Count the FLOP of a step for one image: both views through both networks, and back through the online
    one.

    Convolutions and matrix products count, a multiply-add as 2 and a backward pass as twice the forward.
    """
    online = encoder_flop(model, sizes.online_1) + encoder_flop(model, sizes.online_2)
    target = encoder_flop(model, sizes.target_1) + encoder_flop(model, sizes.target_2)
    return float(3 * online + target + 2 * predictor_flop(model))
