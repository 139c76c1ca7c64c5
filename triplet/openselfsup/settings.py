"""Read configs/openselfsup/: each names one of OpenSelfSup's own configs and the differences from it.

OpenSelfSup's configs are Python files, which reading executes. So they are read from its own folder only;
a user's config is YAML.
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
        path: path of the YAML file. Its ``base`` names a config below ``configs``; all other keys are
            merged over it, with numbers as keys for places in lists. ``gpus`` is the number of processes.
        configs: folder of OpenSelfSup's configs.
        overrides: settings as ``key.sub=value``.

    Only the top-level keys of the file are checked: the plug-in's classes take keys that the base lacks, so
    a misspelt deeper key is merged and fails, if at all, when OpenSelfSup builds from it. Overrides are
    checked at all levels.

    Raises:
        KitError: there is no such base, or the base lacks a key.
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
    """Raise KitError with the nearest right name if there is no such key."""
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
    """Return the settings that the result depends on, for the record: all but the images' path and the
    loaders."""
    values: dict[str, Any] = config._cfg_dict.to_dict()
    values["data"] = {k: v for k, v in values["data"].items() if k not in ("workers_per_gpu", "val")}
    for key in ("log_config", "log_level", "load_from", "resume_from", "work_dir", "checkpoint_config"):
        values.pop(key, None)
    return {"engine": "openselfsup", **values}
