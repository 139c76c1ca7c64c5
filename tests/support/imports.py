"""Who imports whom among the kit's modules, as the source says, functions included."""

import ast
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = Mapping[str, Iterable[str]]
PACKAGES = ("triplet", "benchmarks")
DOOR = "triplet.cli"
"""The command line: of triplet, it alone may import benchmarks, and nothing may import it."""


def read_imports(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, set[str]]:
    """The modules of the packages below a folder, each with those of them that it imports anywhere."""
    paths = {
        _name(path.relative_to(root)): path for each in packages for path in (root / each).rglob("*.py")
    }
    return {name: _imported(name, path, paths) - {name} for name, path in sorted(paths.items())}


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(module: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    here = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here.split(".")[: len(here.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in names}
    # Importing a module runs the __init__ of the packages that it lies in.
    found |= {parent for name in found for parent in _parents(name) if not _inside(module, parent)}
    return found & known.keys()


def _inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def broken_rules(imports: Graph) -> list[str]:
    """A line for each import that breaks a rule, and for each circle of modules or of packages."""
    lines = []
    for module, others in imports.items():
        door = _inside(module, DOOR)
        for other in sorted(others):
            if _inside(module, "triplet") and _inside(other, "benchmarks") and not door:
                lines.append(
                    f"{module} imports {other}: of triplet, only triplet.cli may import benchmarks"
                )
            if _inside(other, DOOR) and not door:
                lines.append(f"{module} imports {other}: nothing may import the command line")
    for what, graph in (("modules", imports), ("packages", between_packages(imports))):
        if circle := find_circle(graph):
            lines.append(f"{what} import each other in a circle: {' -> '.join(circle)}")
    return lines


def between_packages(imports: Graph) -> dict[str, set[str]]:
    """The same between packages; a module beside them stands for itself."""
    found: dict[str, set[str]] = {}
    for module, others in imports.items():
        mine = found.setdefault(_package(module), set())
        mine |= {_package(other) for other in others} - {_package(module), *PACKAGES}
    return found


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def find_circle(graph: Graph) -> list[str]:
    """A circle, its first name at both ends, each importing the next one; [] for none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def picture(imports: Graph) -> set[tuple[str, str]]:
    """The arrows of docs/architecture.md: who imports whom, without what a longer way of arrows says.

    Of the modules beside the packages, those are in it that import a package.
    """
    graph = between_packages(imports)
    folders = {_package(module) for module in imports if module.count(".") > 1} - {*PACKAGES}
    drawn = folders | {name for name, others in graph.items() if others & folders}
    graph = {name: others & drawn for name, others in graph.items() if name in drawn}
    return {
        (name, other)
        for name, others in graph.items()
        for other in others
        if not any(other in _reached(graph, between) for between in others - {other})
    }


def _reached(graph: Mapping[str, set[str]], name: str) -> set[str]:
    return graph[name].union(*(_reached(graph, other) for other in graph[name]))


def drawn_arrows(page: str) -> set[tuple[str, str]]:
    """The arrows of a page's Mermaid picture, by the names of their ends."""
    (block,) = re.findall(r"```mermaid\n(.*?)```", page, re.S)
    names = dict(re.findall(r'(\w+)\["?([\w.]+)"?\]', block))
    return {
        (names.get(start, start), names.get(end.strip(), end.strip()))
        for start, ends in re.findall(r"^ *(\w+) --> (.+)$", block, re.M)
        for end in ends.split("&")
    }
