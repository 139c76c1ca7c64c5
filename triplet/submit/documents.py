"""Write readable YAML: keys in the given order, scripts as blocks."""

from collections.abc import Iterable
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def dump(comment: str, documents: Iterable[dict[str, Any]]) -> str:
    """Return documents as one file under a comment."""
    body = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000)
    return f"# {comment}\n{body}"
