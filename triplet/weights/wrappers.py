"""Wrappers that other projects put around a backbone's state dict, and their names for its parts.

All nested dicts are opened, such as ``state_dict``, ``model``, DINO's ``teacher`` and VISSL's
``classy_state_dict``, and lightly's ``nn.Sequential`` of a ResNet's children. Prefixes such as DDP's
``module.`` and heads beside the backbone need no entry here. If a file holds several ResNets, the one that
its own project evaluates is taken, and the caller learns which were left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from triplet.errors import KitError

DEPTH = 6
"""Deepest nesting of dicts: VISSL's has four levels."""
MOST = 10_000
"""Most dicts to search: an optimiser's state has one for each parameter."""
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""A torchvision ResNet's children by number: 2 is ReLU, 3 the pooling."""
COPIES = {
    "encoder_k.": ("encoder_q.", "encoder."),  # MoCo; PixPro
    "encoder_t.": ("encoder_q.",),  # MSF, ISD
    "momentum_encoder.": ("base_encoder.", "encoder."),  # MoCo v3; solo-learn before 1.0.6
    "momentum_backbone.": ("backbone.",),  # solo-learn
    "backbone_momentum.": ("backbone.",),  # lightly's examples
    "key_backbone.": ("query_backbone.", "backbone."),  # lightly's benchmarks: MoCo
    "query_backbone.": ("backbone.",),
    "teacher_backbone.": ("backbone.",),  # lightly's benchmarks: BYOL evaluates the network that is trained
    "student_backbone.": ("teacher_backbone.", "backbone."),  # DINO evaluates the teacher, `backbone`
    "student.": ("teacher.",),
    "target_encoder.": ("online_encoder.",),
    "target_network.": ("online_network.",),
    "target_net.": ("online_net.",),  # OpenSelfSup
    "target_net.module.0.": ("backbone.",),  # mmpretrain: BYOL, MoCo, MoCo v3
    "encoder_k.module.0.": ("backbone.",),
    "momentum_encoder.module.0.": ("backbone.",),
}
"""A prefix -> the prefixes of networks that are preferred to it if the file has one of them."""
ALTERNATIVES = {
    "student": "teacher",  # DINO evaluates the teacher
    "model": "model_ema",  # torchvision's references publish the average, such as IMAGENET1K_V2
    "state_dict": "state_dict_ema",  # timm
    "target_network_state_dict": "online_network_state_dict",  # BYOL
    "ema_model": "base_model",  # VISSL's own tools load the network that is trained
    "loss": "classy_state_dict",  # VISSL keeps the copy by momentum in the loss
}
"""Key of a dict -> key of the dict that is preferred to it."""


def text(key: object) -> str:
    """Return a key of a state dict as text: bytes are Latin-1, as Python 2's strings were."""
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def unwrap(content: Any, path: Path) -> tuple[Any, str]:
    """Return the dict that holds a backbone, and a phrase on the choice if there were several.

    If no dict holds one, return ``content``, or its ``state_dict`` if it has one.

    Args:
        content: content of a file.
        path: path of the file, for the message.

    Raises:
        KitError: several dicts hold a ResNet and none is known to be preferred; the message has their keys.
    """
    if not isinstance(content, dict) or holds_resnet(content):
        return content, ""
    found = dict(_inside(content, (), [0]))
    kept = [trail for trail in found if not _is_alternative(trail, found)]
    if ("state_dict",) in kept:
        kept = [("state_dict",)]
    if len(kept) > 1:
        names = ", ".join(repr(".".join(trail)) for trail in kept)
        raise KitError(
            f"{path}: holds ResNets in {names:.200}; save the one that is meant alone, by torch.save"
        )
    if not kept:
        return content.get("state_dict", content), ""
    return found[kept[0]], describe_choice(".".join(kept[0]), (".".join(each) for each in found))


def _is_alternative(trail: Sequence[str], trails: Iterable[Sequence[str]]) -> bool:
    """Return whether another dict beside this one is preferred to it."""
    return any(
        other[: place + 1] == (*trail[:place], ALTERNATIVES.get(key))
        for place, key in enumerate(trail)
        for other in trails
    )


def describe_choice(taken: str, all_of_them: Iterable[str]) -> str:
    """Say which of several networks in a file was taken; '' if there is only one."""
    others = [each for each in all_of_them if each != taken]
    return (
        f"{taken.rstrip('.')!r} is taken, not {', '.join(repr(o.rstrip('.')) for o in others)}"
        if others
        else ""
    )


def _inside(
    content: Mapping[Any, Any], trail: tuple[str, ...], seen: list[int]
) -> Iterator[tuple[Any, Any]]:
    """Yield the dicts inside a dict that hold a ResNet, with the keys that lead there."""
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
    """Return whether tensors of a ResNet's first layers are among the values."""
    names = {text(key) for key, value in state.items() if isinstance(value, Tensor)}
    return any(
        name.removesuffix(stem) + block in names
        for stem, block in (("conv1.weight", "layer1.0.conv1.weight"), ("0.weight", "4.0.conv1.weight"))
        for name in names
        if name == stem or name.endswith(f".{stem}")
    )


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restore the names of a ResNet's children that an ``nn.Sequential`` has numbered."""
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
    """Return the prefixes of ResNets without those to which another one is preferred; see ``COPIES``."""

    def is_copy(prefix: str) -> bool:
        return any(
            f".{prefix}".replace(f".{copy}", f".{origin}") == f".{other}"
            for copy, origins in COPIES.items()
            for origin in origins
            for other in prefixes
            if other != prefix
        )

    return [prefix for prefix in prefixes if not is_copy(prefix)]
