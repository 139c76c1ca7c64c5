"""``python -m benchmarks.speed.scale``: a model of images per second and MFU on 1 to 1024 GPUs.

Nothing is measured. A step takes as long as its arithmetic or its memory traffic, whichever is slower. BN's
collectives are added, which nothing overlaps, and the part of the gradients' all-reduce that does not fit
under the backward pass. Every GPU waits for the slowest. Loading images is left out, so the model is
optimistic. ``CHECKS`` holds published ResNet-50 results; tests keep the model within ``ERROR`` of each.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.speed.flops import PEAKS
from triplet import files
from triplet.progress import say

ERROR = 0.15
"""Largest relative error of images per second against each published result."""
GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
FLOP, TRAFFIC = 37.7e9, 560e6
"""FLOP per image in the fast recipe's step, counted, and bytes per image, as inductor counts them in the
compiled step."""
REACHED = 0.9 * 0.72
"""Fraction of the data sheet's bandwidth that a copy reaches, times the step's fraction of a copy.
Estimated."""
BUSY = 0.5
"""Largest fraction of a card's dense bfloat16 peak in convolutions of ResNet-50's shapes. Assumed."""
BANDWIDTHS = {
    "H100 80GB HBM3": 3.35e12,
    "H200": 4.8e12,
    "A100": 1.555e12,
    "RTX 4090": 1.008e12,
    "RTX 3090": 0.936e12,
}
"""Memory bandwidth in bytes per second from NVIDIA's data sheets; for the A100, that of the 40 GB card."""


@dataclass(frozen=True)
class Cluster:
    """Servers with equal GPUs. Bandwidths are in bytes per second, one way, for all GPUs of a server."""

    within: float = 150e9
    """Bytes per second of an all-reduce inside a server (NVLink)."""
    between: float = 50e9
    """Bytes per second of a server's network: 4 adapters of 100 Gbit/s."""
    in_server: int = 8
    launch: float = 10e-6
    """Seconds of an empty collective, without its hops."""
    hop: float = 3e-6
    """Seconds of a message inside a server."""
    far_hop: float = 10e-6
    """Seconds of a message between servers."""
    deviation: float = 0.02
    """Relative deviation of the GPUs' step times; all wait for the slowest."""

    def all_reduce(self, size: float, gpus: int) -> float:
        """Return the seconds of an all-reduce of ``size`` bytes.

        Rings carry the bytes; the latency is that of a ring or a tree, whichever is lower. An all-gather of
        ``size`` bytes in all takes no longer.
        """
        if gpus == 1:
            return 0.0
        near = min(gpus, self.in_server)
        far = math.ceil(gpus / self.in_server)
        carried = 2 * size * ((near - 1) / near / self.within + (far - 1) / far / self.between)
        ring = (near - 1) * self.hop + (far - 1) * self.far_hop
        tree = math.ceil(math.log2(near)) * self.hop + math.ceil(math.log2(far)) * self.far_hop
        return self.launch + carried + 2 * min(ring, tree)

    def waiting(self, gpus: int) -> float:
        """Return the expected slowest of normal step times over their mean, by the usual bound."""
        return 1 + self.deviation * math.sqrt(2 * math.log(gpus))


@dataclass(frozen=True)
class ProcessStep:
    """One process's step: from a batch to updated weights."""

    seconds: float
    """Seconds of the step on one GPU alone."""
    images: int
    gradients: float
    """Bytes of the all-reduce at the end of each step."""
    norms: int = 0
    """Forward passes through pooled BN layers, each with an all-gather."""
    norms_back: int = 0
    """Backward passes through them, each with an all-reduce."""
    pool: int = 1
    """Number of GPUs over which BN pools its statistics."""
    backward: float = 2 / 3
    """Fraction of the step in which gradients become available and travel in buckets."""
    bucket: float = 25 * 2**20
    """Bytes of a DDP bucket; the last one is not overlapped."""

    def on(self, gpus: int, cluster: Cluster) -> float:
        """Return the seconds of a step on ``gpus`` GPUs, each with ``images`` images."""
        statistics = (2 * 512 + 1) * 4.0  # a layer's mean, squares and count; 512 channels in the mean
        pool = min(self.pool, gpus)
        norms = self.norms * cluster.all_reduce(statistics * pool, pool)
        norms += self.norms_back * cluster.all_reduce(statistics, pool)
        travel = cluster.all_reduce(self.gradients, gpus)
        last = cluster.all_reduce(min(self.bucket, self.gradients), gpus)
        hidden = min(travel - last, self.backward * self.seconds)
        return (self.seconds + norms) * cluster.waiting(gpus) + travel - hidden

    def rate(self, gpus: int, cluster: Cluster) -> float:
        """Return the images per second of all GPUs together."""
        return gpus * self.images / self.on(gpus, cluster)


RESNET50 = 25.557e6 * 4
"""Bytes of ResNet-50's gradients in float32."""


@dataclass(frozen=True)
class ScalingCheck:
    """Two published speeds of one training: at ``base`` GPUs, which the model is given, and at more."""

    name: str
    source: str
    base: int
    base_rate: float
    gpus: int
    rate: float
    images: int
    """Images per GPU and step."""
    cluster: Cluster

    def predicted(self) -> float:
        """Predict the images per second at ``gpus`` from the speed at ``base``."""
        seconds = self.base * self.images / self.base_rate
        low, high = 0.0, seconds
        for _ in range(60):  # find the step time that gives the speed at the base
            middle = (low + high) / 2
            slow = ProcessStep(middle, self.images, RESNET50).on(self.base, self.cluster) > seconds
            low, high = (low, middle) if slow else (middle, high)
        return ProcessStep(high, self.images, RESNET50).rate(self.gpus, self.cluster)


P100 = Cluster(within=20e9, between=6.25e9)  # 50 Gbit/s a server; first NVLink: assumed
DGX1 = Cluster(within=60e9, between=12.5e9)  # 100 Gbit/s of InfiniBand; NVLink 2: assumed
NVIDIA = "github NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5, commit 291f0d02"
DLPERF = "github Oneflow-Inc/DLPerf, NVIDIADeepLearningExamples/PyTorch/resnet50v1.5, commit 038634b9"
EPOCHS = 90 * 1_281_167
"""Number of images in 90 epochs of ImageNet."""
CHECKS = (
    ScalingCheck(
        "P100, float32",
        "Goyal et al., arXiv 1706.02677: 1 hour on 256 GPUs, 29 on 8; developer.nvidia.com gives both",
        8,
        EPOCHS / (29 * 3600),
        256,
        EPOCHS / 3600,
        32,
        P100,
    ),
    ScalingCheck(
        "P100, float32",
        "Akiba et al., arXiv 1711.04325: 15 minutes on 1024 GPUs; from Goyal's 8 GPUs, its network assumed",
        8,
        EPOCHS / (29 * 3600),
        1024,
        EPOCHS / 900,
        32,
        P100,
    ),
    ScalingCheck("V100, float32", DLPERF, 1, 367.29, 8, 2887.65, 128, DGX1),
    ScalingCheck("V100, float32", DLPERF, 1, 367.29, 16, 5716.79, 128, DGX1),
    ScalingCheck("V100, float32", DLPERF, 1, 367.29, 32, 10917.09, 128, DGX1),
    ScalingCheck("V100, float16", DLPERF, 1, 802.9, 32, 22551.16, 256, DGX1),
    ScalingCheck("V100 16GB, float32", NVIDIA, 1, 367.0, 8, 2855.0, 256, DGX1),
    ScalingCheck("A100 80GB, float16", NVIDIA, 1, 2470.0, 8, 16621.0, 256, Cluster()),
)


def step_of(card: str, images: int = 196) -> ProcessStep:
    """Return the fast recipe's step on a card: gradients of ResNet-50 and both heads, BN over 8 GPUs."""
    seconds = images * max(TRAFFIC / (REACHED * BANDWIDTHS[card]), FLOP / (BUSY * PEAKS[card]))
    return ProcessStep(seconds, images, gradients=35.1e6 * 4, norms=217, norms_back=109, pool=8)


def cards() -> dict[str, list[dict[str, float]]]:
    """Return images per second, MFU and efficiency for each card and number of GPUs."""
    found = {}
    for card in BANDWIDTHS:
        consumer = card.startswith("RTX")  # PCIe 4 in place of NVLink, one adapter
        cluster = replace(Cluster(), within=20e9, between=12.5e9) if consumer else Cluster()
        step = step_of(card)
        alone = step.rate(1, cluster)
        rates = {gpus: step.rate(gpus, cluster) for gpus in GPUS}
        found[card] = [
            {
                "gpus": gpus,
                "images_per_second": round(rate, 1),
                "mfu": round(rate * FLOP / gpus / PEAKS[card], 4),
                "efficiency": round(rate / gpus / alone, 4),
            }
            for gpus, rate in rates.items()
        ]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of all cards, and write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.scale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    arguments = parser.parse_args(argv)
    found = cards()
    for card, rows in found.items():
        for row in rows:
            say(
                f"{card:<16}{row['gpus']:>5} GPUs {row['images_per_second']:>12,.0f} images/s, "
                f"MFU {row['mfu']:.1%}, efficiency {row['efficiency']:.1%}"
            )
    checks = [
        {**asdict(check), "predicted": round(check.predicted(), 1), "error": round(error(check), 4)}
        for check in CHECKS
    ]
    if arguments.output:
        command = shlex.join(["python", "-m", "benchmarks.speed.scale", *argv])
        assumptions = {"cluster": asdict(Cluster()), "flop": FLOP, "traffic": TRAFFIC, "error": ERROR}
        assumptions.update(reached=REACHED, busy=BUSY)
        content = {"command": command, "measured": False, "cards": found, "checks": checks}
        files.write_text(
            arguments.output, json.dumps({**content, "assumptions": assumptions}, indent=1) + "\n"
        )
    return 0


def error(check: ScalingCheck) -> float:
    """Return the prediction's relative error, which is positive if it is too fast."""
    return check.predicted() / check.rate - 1


if __name__ == "__main__":
    sys.exit(main())
