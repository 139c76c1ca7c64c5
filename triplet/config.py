"""Read YAML into typed settings; an error is reported in one line."""

import difflib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError

from triplet import untrusted
from triplet.errors import KitError, message_of


def _in_order(ends: tuple[Any, Any]) -> tuple[Any, Any]:
    if ends[0] > ends[1]:
        raise ValueError(f"at least {ends[0]} and at most {ends[1]} holds nothing")
    return ends


InOrder = AfterValidator(_in_order)
"""Refuses a pair whose first value is larger than its second."""
Range = Annotated[tuple[float, float], InOrder]
"""At least and at most."""


class Settings(BaseModel):
    """Base of every schema: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Probability = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Resolution = Annotated[int, Field(ge=32, le=1024)]
"""Side of a square image, in pixels."""
# The last three errors come from an override such as '[=1', and from YAML that contains itself.
_UNREADABLE = (
    yaml.YAMLError,
    OmegaConfBaseException,
    UnicodeDecodeError,
    OSError,
    LookupError,
    RecursionError,
    ValueError,
)
S = TypeVar("S", bound=Settings)
R = TypeVar("R", bound=BaseModel)


def load(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply ``key.sub=value`` overrides, validate.

    Args:
        path: path of the YAML file (read by OmegaConf's SafeLoader, which refuses duplicate keys and reads
            1e-4 as a number).
        schema: the schema that it must fit.
        overrides: applied in order.

    Raises:
        KitError: no such file, not YAML, an override that is not key=value, or a setting that does not fit
            the schema; the message has the first such setting and the nearest right name.
    """
    return parse(read(path, overrides), schema, str(path))


def parse_file(path: Path, schema: type[R]) -> R:
    """Read a YAML file of a schema whose keys are names, without overrides."""
    return parse(read(path), schema, str(path))


def read(path: Path, overrides: Sequence[str] = ()) -> Any:
    """Read the plain values of a YAML file under overrides without validating them; KitError as in
    ``load``."""
    changes = _dotted(overrides)
    try:
        text = untrusted.read_text(path, untrusted.CONFIG, "config")
        untrusted.check_yaml(text, str(path))
        events = itertools.islice(yaml.parse(text, Loader=yaml.SafeLoader), 3)  # OmegaConf takes any text
        if not any(isinstance(event, yaml.MappingStartEvent) for event in events):
            raise KitError(f"{path}: expected keys with values, found {text!r:.40}")
        values = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(text), changes))
    except FileNotFoundError:
        raise KitError(f"no config at {path}; see configs/ for those of the kit") from None
    except _UNREADABLE as error:
        raise KitError(f"{path}: cannot be read: {message_of(error, 300)}") from None
    untrusted.check_numbers(values, str(path))
    return values


def nested(overrides: Sequence[str]) -> Any:
    """Parse ``key.sub=value`` into plain values, with numbers in keys as names; KitError as in ``load``."""
    return OmegaConf.to_container(_dotted(overrides))


def _dotted(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise KitError(f"found {override!r} where an override key=value was expected")
    try:
        for override in overrides:
            untrusted.check_yaml(override.partition("=")[2], f"{override:.60}")
            if override.partition("=")[0].count(".") > untrusted.CONFIG_DEPTH:
                raise KitError(f"{override:.60}: a key of more than {untrusted.CONFIG_DEPTH} levels")
        changes = OmegaConf.from_dotlist(list(overrides))
        untrusted.check_numbers(OmegaConf.to_container(changes), "an override")
    except _UNREADABLE as error:
        shown = " ".join(overrides)
        raise KitError(f"{shown:.200}: cannot be read: {message_of(error, 300)}") from None
    return changes


def parse(values: Any, schema: type[R], source: str) -> R:
    """Validate plain values; ``source`` names them in the message of the KitError."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # A misspelt key is missing under its right name as well: say that it is misspelt.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        rest = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise KitError(f"{source}: {_explain(first, schema)}{rest}") from None


def did_you_mean(word: str, names: Sequence[str], others: Sequence[str] = ()) -> str:
    """Suggest the intended name: the nearest one, or else a list of ``names``.

    Args:
        word: the name that was found.
        names: the valid names.
        others: further valid names that are not worth listing.
    """
    near = nearest(word, [*names, *others])
    return f"did you mean {near!r}?" if near else f"known here: {', '.join(names)}"


def nearest(word: str, names: Sequence[str]) -> str | None:
    """Return the name that is nearest to a word; None if none is near."""
    return next(iter(difflib.get_close_matches(word[:100], names, n=1, cutoff=0.5)), None)


def _explain(error: Any, schema: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "extra_forbidden":
        *place, last = error["loc"]
        return f"unknown key {key!r:.200}; {did_you_mean(str(last), _names(schema, place))}"
    if error["type"] == "missing":
        return f"missing key {key!r}"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if isinstance(error["input"], dict) else f", found {error['input']!r:.100}"
    return f"{key:.200}: {message:.300}{found}"


def _names(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the field names of the schema at a location in the settings (through dicts and lists)."""
    for part in location:
        field = schema.model_fields.get("root" if issubclass(schema, RootModel) else str(part))
        if field is None:  # an index or a dict key: the element's type was unwrapped already
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        schema = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), schema)
    return sorted(schema.model_fields)
