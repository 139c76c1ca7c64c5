"""Configs of configs/openselfsup/: one of OpenSelfSup's own configs and what differs from it.

OpenSelfSup's configs are Python files, which are run to be read. So they come from its own folder alone;
what a user gives is YAML.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triplet.config import did_you_mean, nested, read
from triplet.errors import KitError

NEW = {"gpus", "seed", "data.drop_last"}
"""Keys of the kit that OpenSelfSup's configs do not have."""
PLUGIN = "triplet.openselfsup.plugin"


def resolve(path: Path, configs: Path, overrides: Sequence[str] = ()) -> Any:
    """Build mmcv's Config of a run.

    Args:
        path: of the YAML file. Its ``base`` names a config below ``configs``; all other keys are merged
            over that, numbers as keys being places in lists. ``gpus`` says how many processes it is for.
        configs: OpenSelfSup's.
        overrides: ``key.sub=value``.

    The file's keys are checked at the top alone: the plug-in's classes take keys that the base does not
    have, so a misspelt one below the top is merged and fails, if at all, where OpenSelfSup builds from it.
    Overrides are checked all the way down.

    Raises:
        KitError: no such base, or a key that the base does not have.
    """
    from mmcv import Config

    values, changes = read(path), nested(overrides)
    if not isinstance(base := values.pop("base", None), str):
        raise KitError(f"{path}: expected base, the name of one of OpenSelfSup's configs")
    file = (configs / base).resolve()
    if not file.is_relative_to(configs.resolve()) or not file.is_file():
        raise KitError(f"{path}: base={base} is not a config below {configs}")
    config = Config.fromfile(str(file))
    for key in values:
        _known(config._cfg_dict, str(key), path)
    config.merge_from_dict({"seed": 0, "gpus": 8, **values}, allow_list_keys=True)
    for override in overrides:
        _known(config._cfg_dict, override.partition("=")[0], path)
    config.merge_from_dict(changes, allow_list_keys=True)
    if config.model.type == "Triplet":
        config.model.setdefault("seed", config.seed)
    config.custom_imports = dict(imports=[PLUGIN], allow_failed_imports=False)
    return config


def _known(config: Any, key: str, path: Path) -> None:
    """Raise KitError when there is no such key, with the nearest right name."""
    if key in NEW:
        return
    for part in key.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        elif isinstance(config, dict) and part in config:
            config = config[part]
        else:
            names = sorted(map(str, config)) if isinstance(config, dict) else []
            raise KitError(f"{path}: unknown key {key!r}; {did_you_mean(part, names, sorted(NEW))}")


def plain(config: Any) -> dict[str, Any]:
    """Return the settings that the result depends on, for the record: all but where images are and who
    loads them."""
    values: dict[str, Any] = config._cfg_dict.to_dict()
    values["data"] = {k: v for k, v in values["data"].items() if k not in ("workers_per_gpu", "val")}
    for key in ("log_config", "log_level", "load_from", "resume_from", "work_dir", "checkpoint_config"):
        values.pop(key, None)
    return {"engine": "openselfsup", **values}
