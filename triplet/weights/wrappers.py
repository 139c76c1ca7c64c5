"""What other projects wrap around a backbone's state dict, and their names for its parts.

Looked into: ``state_dict``, ``model``, ``student`` and ``teacher`` (DINO), VISSL's ``classy_state_dict``,
and any other dicts in dicts; lightly's ``nn.Sequential`` of a ResNet's children; copies that follow the
backbone by momentum (MoCo, solo-learn, lightly) are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from triplet.errors import KitError

DEPTH = 6
"""Dicts in dicts: VISSL's has four."""
MOST = 10_000
"""Dicts that are looked into: an optimiser's state has one for each parameter."""
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""A torchvision ResNet's children by number: 2 is ReLU, 3 the pooling."""
COPIES = {
    "encoder_k.": "encoder_q.",
    "momentum_encoder.": "encoder.",
    "momentum_backbone.": "backbone.",
    "backbone_momentum.": "backbone.",
    "target_encoder.": "online_encoder.",
}
"""By the last part of its name, what a copy by momentum is of."""
TAUGHT = ("teacher", "student")
"""Of these DINO evaluates the first."""


def text(key: object) -> str:
    """A key of a state dict as text: bytes are Latin-1, as Python 2's strings were."""
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def unwrap(content: Any, path: Path) -> Any:
    """The dict in which a backbone is, or ``content`` (its ``state_dict``, where there is one) if none is
    found.

    Args:
        content: of a file.
        path: of the file, for the message.

    Raises:
        KitError: several dicts hold a ResNet and none is known to be the one; their keys are named.
    """
    if not isinstance(content, dict):
        return content
    plain = content.get("state_dict", content)
    if not isinstance(plain, dict) or holds_resnet(plain):
        return plain
    found = dict(_inside(content, (), [0]))
    if len(found) > 1:
        # DINO's teacher; or else one that others are copies of.
        first = [trail for trail in found if trail[-1] == TAUGHT[0] and (*trail[:-1], TAUGHT[1]) in found]
        found = {first[0]: found[first[0]]} if len(found) == 2 and first else found
    if len(found) > 1:
        names = ", ".join(repr(".".join(trail)) for trail in found)
        raise KitError(
            f"{path}: holds ResNets in {names:.200}; save the one that is meant alone, by torch.save"
        )
    return next(iter(found.values())) if found else plain


def _inside(
    content: Mapping[Any, Any], trail: tuple[str, ...], seen: list[int]
) -> Iterator[tuple[Any, Any]]:
    """The dicts inside a dict that hold a ResNet, by the keys that lead there."""
    seen[0] += 1
    if len(trail) > DEPTH or seen[0] > MOST:
        return
    for key, value in content.items():
        if isinstance(value, dict):
            here = (*trail, text(key))
            if holds_resnet(value):
                yield here, value
            else:
                yield from _inside(value, here, seen)


def holds_resnet(state: Mapping[Any, Any]) -> bool:
    """Whether tensors of a ResNet's first layers are among the values."""
    names = {text(key) for key, value in state.items() if isinstance(value, Tensor)}
    return any(
        name.removesuffix(stem) + block in names
        for stem, block in (("conv1.weight", "layer1.0.conv1.weight"), ("0.weight", "4.0.conv1.weight"))
        for name in names
        if name == stem or name.endswith(f".{stem}")
    )


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the parts of an ``nn.Sequential`` of a ResNet's children their names back."""
    stems = [name[: -len("0.weight")] for name in state if name == "0.weight" or name.endswith(".0.weight")]
    for prefix in (p for p in stems if f"{p}4.0.conv1.weight" in state and f"{p}1.running_mean" in state):
        renamed = {}
        for name, value in state.items():
            number, dot, rest = name.removeprefix(prefix).partition(".")
            known = name.startswith(prefix) and dot and number in CHILDREN
            renamed[f"{prefix}{CHILDREN[number]}.{rest}" if known else name] = value
        state = renamed
    return state


def without_copies(prefixes: Sequence[str]) -> list[str]:
    """The prefixes of ResNets without those that are copies, by momentum, of another one there."""

    def is_copy(prefix: str) -> bool:
        return any(
            f".{prefix}".endswith(f".{copy}") and prefix.removesuffix(copy) + origin in prefixes
            for copy, origin in COPIES.items()
        )

    return [prefix for prefix in prefixes if not is_copy(prefix)]
