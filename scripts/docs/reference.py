"""Pages that are made from the code: commands, configs, error messages."""

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from triplet import cli

KIT = Path(__file__).parent.parent.parent
SCHEMAS = {
    "Pretraining: configs/pretrain/": ["triplet/pretrain/config.py"],
    "Linear probe, neighbours, few labels, SVM: configs/linear/": ["benchmarks/linear/config.py"],
    "Demo and subsets: configs/demo.yaml": [
        "triplet/demo.py",
        "triplet/pull/synthetic.py",
        "triplet/pull/subset.py",
    ],
    "Sources of data and weights: configs/sources.yaml": ["triplet/pull/sources.py"],
    "Methods of the table: configs/methods.yaml": ["triplet/published/methods.py"],
    "Published numbers: configs/published.yaml, configs/expected.yaml": [
        "triplet/published/tables.py",
        "triplet/published/curves.py",
    ],
    "Energy: configs/power.yaml": ["triplet/report/costs.py"],
}
"""Heading of a group of configs -> where their schemas are."""
AREAS = {
    "Data and weights": ("triplet/pull", "triplet/images.py", "triplet/coco.py"),
    "Pretraining": ("triplet/pretrain", "triplet/openselfsup", "triplet/training"),
    "Weights and conversion": ("triplet/weights", "triplet/models"),
    "Detection": ("benchmarks/detection", "triplet/scores.py"),
    "Linear probe, neighbours, few labels, SVM": ("benchmarks/linear", "triplet/knn.py"),
    "Clusters": ("triplet/submit",),
    "Configs, records, report and the rest": ("triplet", "benchmarks"),
}
"""Heading of a group of error messages -> paths that they come from; the first that fits counts."""


def commands() -> str:
    """Return the page of all commands, as the parser knows them."""
    (choice,) = (a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    lines = [
        "# Commands",
        "",
        "Each command is a make target of the same name, and each but submit a compose service: no "
        "container reaches the host's scheduler. Make passes on what you set, for example `METHOD`, `GPUS` "
        "or `SCHEDULE`; `make` alone lists the targets with their variables. This page is made from the "
        "parser.",
    ]
    for name, command in choice.choices.items():
        usage = re.sub(r"\s+", " ", command.format_usage().removeprefix("usage: ")).strip()
        lines += [
            "",
            f"## {name}",
            "",
            f"{_sentence(command.description or '')}",
            "",
            f"```text\n{usage}\n```",
            "",
        ]
        lines += ["| argument | meaning |", "|---|---|"]
        formatter = command._get_formatter()
        for action in command._actions:
            if action.dest == "help":
                continue
            said = formatter._expand_help(action) if action.help else ""
            names = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar}`"
            lines.append(f"| {names}{_value(action)} | {_cell(said.replace(f'{KIT}/', ''))} |")
    return "\n".join(lines) + "\n"


def _value(action: argparse.Action) -> str:
    if action.choices:
        return " " + " or ".join(f"`{choice}`" for choice in action.choices)
    if action.option_strings and action.nargs != 0:
        shown = action.metavar or action.dest.upper()
        return " " + " ".join(f"*{word}*" for word in ([shown] if isinstance(shown, str) else shown))
    return ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def configs() -> str:
    """Return the page of all settings: the files with what they are for, and the keys of each schema."""
    lines = [
        "# Configs",
        "",
        "Any setting can be changed behind the command as `key=value`, for example "
        '`triplet pretrain schedule.epochs=200`, or with make as `ARGS="schedule.epochs=200"`. A key that '
        "does not exist is refused with the nearest one that does. This page is made from the files and "
        "from the schemas that check them. Detection configs are Detectron2's own YAML.",
        "",
        "## The files",
    ]
    folder = None
    for path in sorted((KIT / "configs").rglob("*.yaml"), key=lambda path: (path.parent, path.name)):
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"`{folder.relative_to(KIT)}/`", ""]
        said = _leading_comment(path)
        lines.append(f"- `{path.name}`" + (f": {said}" if said else ""))
    for title, paths in SCHEMAS.items():
        lines += ["", f"## {title}"]
        for path in paths:
            for schema in _schemas(KIT / path):
                lines += _schema(schema)
    return "\n".join(lines) + "\n"


def _leading_comment(path: Path) -> str:
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def _schemas(path: Path) -> Iterator[ast.ClassDef]:
    known = {"Settings"}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and any(
            isinstance(b, ast.Name) and b.id in known for b in node.bases
        ):
            known.add(node.name)
            yield node


def _schema(schema: ast.ClassDef) -> list[str]:
    lines = ["", f"### {schema.name}", ""]
    if text := ast.get_docstring(schema):
        lines += [text, ""]
    inherited = [base.id for base in schema.bases if isinstance(base, ast.Name) and base.id != "Settings"]
    if inherited:
        lines += [f"Has the keys of {', '.join(inherited)} too.", ""]
    rows = []
    for node, after in zip(schema.body, [*schema.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = f"`{ast.unparse(node.value)}`" if node.value else "required"
            said = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else ""
            )
            kind = _cell(_kind(ast.unparse(node.annotation)))
            rows.append(f"| `{node.target.id}` | {kind} | {_cell(default)} | {_cell(str(said))} |")
    return [*lines, "| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else lines


def _kind(annotation: str) -> str:
    """Write an annotation for people: ``Annotated[int, Field(ge=1)]`` is ``int, at least 1``."""
    words = {
        "ge": "at least",
        "gt": "above",
        "le": "at most",
        "lt": "below",
        "multiple_of": "a multiple of",
    }

    def limits(found: re.Match[str]) -> str:
        kind, fields = found[1], re.findall(r"(\w+)=([\w.]+)", found[2])
        return ", ".join([kind, *(f"{words.get(name, name)} {value}" for name, value in fields)])

    text = re.sub(r"Annotated\[([\w\[\], ]+), Field\(([^()]*)\)\]", limits, annotation)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace(", ", " or "), text)
    text = re.sub(r"Annotated\[(.+), InOrder\]", r"\1, in order", text)
    text = re.sub(r"\bPositiveShare\b", "number above 0, at most 1", text)
    text = re.sub(r"\bProbability\b", "number from 0 to 1", text)
    text = re.sub(r"\bPositiveFloat\b", "number above 0", text)
    text = re.sub(r"\bNonNegativeFloat\b", "number, at least 0", text)
    return re.sub(r"\bResolution\b", "pixels, 32 to 1024", text)


def messages() -> str:
    """Return every error message of the code, in groups, with an ellipsis for what is filled in."""
    groups: dict[str, set[str]] = {title: set() for title in AREAS}
    for path in sorted([*(KIT / "triplet").rglob("*.py"), *(KIT / "benchmarks").rglob("*.py")]):
        name = path.relative_to(KIT).as_posix()
        title = next(title for title, starts in AREAS.items() if name.startswith(starts))
        groups[title] |= set(_raised(path))
    lines = []
    for title, found in groups.items():
        lines += ["", f"### {title}", "", *(f"- {text}" for text in sorted(found, key=str.lower))]
    return "\n".join(lines) + "\n"


def _raised(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "KitError":
            text = "".join(_pieces(node.args[:1]))
            if len(re.sub(r"[^a-z]", "", text)) > 12:
                yield _cell(text.replace("*", "\\*").replace("[", "\\["))


def _pieces(nodes: Iterable[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant):
            yield str(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield from _pieces(node.values)
        elif isinstance(node, ast.BinOp):
            yield from _pieces([node.left, node.right])
        else:
            yield "…"
