"""Plausible mistakes in a module, made one at a time, and whether its tests see them: ``make mutants``.

``make mutants MODULE=triplet/training/optim.py [TESTS="tests/training"] [MOST=40]``

Works on a copy of the tree, so that nothing here changes. The heavy libraries are imported once; each
mistake is tried in a fork of this process, which runs the module's tests until the first one fails. (mutmut
leaves out whatever has a decorator, and cosmic-ray starts an interpreter, and with it torch, for each
mistake.) Results are kept below .mutants/, so that a run that was stopped goes on.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIT = Path(__file__).parent.parent
HEAVY = """torch torchvision torch.utils.tensorboard torch._dynamo sklearn.svm sklearn.model_selection
    scipy.io cv2 PIL.Image pytest pytest_timeout hypothesis.strategies pydantic omegaconf yaml jinja2
    rich.progress pycurl pycocotools.mask hotcoco ultrafast_pycocotools.coco matplotlib.figure fvcore.nn"""
"""Imported before the forks, of which each would else take seconds more; none starts threads."""
PATIENCE = 5.0
"""A mistake whose tests take this many times as long as without it, and 20 s more, hangs: it is caught."""


@dataclass(frozen=True)
class Mutant:
    """One mistake: a module's text with one place replaced."""

    line: int
    was: str
    now: str
    text: str

    @property
    def key(self) -> str:
        """The same for the same mistake in the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        was, now = (" ".join(part.split())[:60] for part in (self.was, self.now))
        return f"{self.line}: {was}  ->  {now or '(deleted)'}"


SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "mean": "sum",
    "sum": "mean",
    "floor": "ceil",
}
NAMES |= {
    "ceil": "floor",
    "round": "int",
    "sqrt": "square",
    "argmax": "argmin",
    "rglob": "glob",
    "lstrip": "rstrip",
}
"""Functions and methods that are easily taken for each other."""


class _Finder(ast.NodeVisitor):
    """Collects (node, replacement) pairs; types, docstrings and messages are left alone."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, str]] = []

    def change(self, node: ast.expr, **fields: object) -> None:
        """The node with other fields, as source."""
        made = type(node)(**{**dict(ast.iter_fields(node)), **fields})
        self.found.append(
            (
                node,
                f"({ast.unparse(made)})" if isinstance(node, ast.BinOp | ast.BoolOp) else ast.unparse(made),
            )
        )

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if swap := SWAPS.get(type(node.op)):
            self.change(node, op=swap())
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.change(node, op=SWAPS[type(node.op)]())
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, op in enumerate(node.ops):
            self.change(node, ops=[*node.ops[:place], SWAPS[type(op)](), *node.ops[place + 1 :]])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            self.found.append((node, f"({ast.unparse(node.operand)})"))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.found.append((node, str(not node.value)))
        elif isinstance(node.value, int):
            self.found.append((node, str(node.value + 1)))
        elif isinstance(node.value, float):
            self.found.append((node, str(node.value * 2 or 1.0)))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What a message says is not looked at."""

    def visit_Call(self, node: ast.Call) -> None:
        plain = not any(isinstance(each, ast.Starred) for each in node.args)
        if plain and len(node.args) > 1:
            self.change(node, args=[node.args[1], node.args[0], *node.args[2:]])
        for keyword in node.keywords:
            if keyword.arg:
                self.change(node, keywords=[each for each in node.keywords if each is not keyword])
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in NAMES:
            func = (
                ast.Attribute(node.func.value, NAMES[name], ast.Load())
                if isinstance(node.func, ast.Attribute)
                else ast.Name(NAMES[name], ast.Load())
            )
            self.change(node, func=func)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.found.append((node, "pass"))
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            self.found.append((node, "pass"))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.found.append((node, "pass"))
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.found.append((node, "pass"))

    def visit_If(self, node: ast.If) -> None:
        self.found.append((node.test, f"(not ({ast.unparse(node.test)}))"))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for each in [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]:
            self.visit(each)


def mutants(text: str) -> list[Mutant]:
    """All mistakes that are made in a module of this text, in order."""
    finder, starts = _Finder(), [0]
    finder.visit(ast.parse(text))
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    data, made = text.encode(), []
    for node, now in finder.found:
        begin, end = (starts[line - 1] + column for line, column in _span(node))
        changed = (data[:begin] + now.encode() + data[end:]).decode()
        if changed != text and _compiles(changed):
            made.append(
                Mutant(_span(node)[0][0], data[begin:end].decode(), "" if now == "pass" else now, changed)
            )
    return list({each.key: each for each in sorted(made, key=lambda each: each.line)}.values())


def _span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]


def _compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def tests_of(module: str) -> list[str]:
    """Test files of a module: that of its name first, then those that import it."""
    path = Path(module)
    dotted, package = ".".join(path.with_suffix("").parts), ".".join(path.parent.parts)
    imports = re.compile(
        rf"(from {re.escape(dotted)} import|import {re.escape(dotted)}\b"
        rf"|from {re.escape(package)} import [^\n]*\b{path.stem}\b)"
    )
    found = [
        file
        for file in sorted((KIT / "tests").rglob("test_*.py"))
        if "containers" not in file.parts and imports.search(file.read_text())
    ]
    found += (KIT / "tests").rglob(f"test_{path.stem}.py")
    first = sorted(
        {*found}, key=lambda file: (not file.stem.startswith(f"test_{path.stem}"), file.stat().st_size)
    )
    return [str(file.relative_to(KIT)) for file in first]


class Workshop:
    """A copy of the tree in which mistakes are tried.

    Args:
        folder: of the copy, empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=KIT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (KIT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(KIT / name, folder / name)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # some tests list the files
        (folder / ".venv").symlink_to(KIT / ".venv")

    def passes(self, tests: list[str], timeout: float) -> bool | None:
        """Whether all tests pass in a fork; None where they take longer than ``timeout`` seconds."""
        child = os.fork()
        if not child:
            self._run(tests)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) == 0
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _run(self, tests: list[str]) -> None:
        os.setsid()
        quiet = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.chdir(self.folder)
        sys.path[:] = [str(self.folder), *(path for path in sys.path if path not in ("", str(KIT)))]
        for name in [
            name for name in sys.modules if name.partition(".")[0] in ("triplet", "benchmarks", "tests")
        ]:
            del sys.modules[name]
        os.environ |= {"PYTHONPATH": str(self.folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        code = 3
        try:
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
            code = int(pytest.main([*options, "-m", "not slow and not browser", "-o", "addopts=", *tests]))
        finally:
            os._exit(code)

    def caught(self, module: str, mutant: Mutant, tests: list[str], timeout: float) -> bool:
        """Whether the tests fail, or hang, with a mistake in a module."""
        path = self.folder / module
        before = path.read_text()
        for old in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            old.unlink()
        path.write_text(mutant.text)
        os.utime(
            path, (time.time() + 5, time.time() + 5)
        )  # no bytecode of another one is taken for its own
        try:
            return not self.passes(tests, timeout)
        finally:
            path.write_text(before)
            for old in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
                old.unlink()


def chosen(found: list[Mutant], most: int | None) -> list[Mutant]:
    """At most so many of them, drawn the same each time."""
    if most is None or most >= len(found):
        return found
    return sorted(random.Random(0).sample(found, most), key=lambda each: each.line)


def results(path: Path) -> Iterator[tuple[str, bool]]:
    """What an earlier session has found."""
    for line in path.read_text().splitlines() if path.exists() else ():
        key, caught = json.loads(line)
        yield key, caught


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="+", help="files below triplet/ or benchmarks/")
    parser.add_argument("--tests", nargs="+", help="instead of the module's own")
    parser.add_argument("--most", type=int, help="mistakes to try of each module, drawn at random")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY.split():
        __import__(name)
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        shop = Workshop(Path(folder))
        for module in arguments.modules:
            survived += examine(shop, module, arguments.tests or tests_of(module), arguments.most)
    return 1 if survived else 0


def examine(shop: Workshop, module: str, tests: list[str], most: int | None) -> int:
    """Try a module's mistakes and print them; the number of those that nothing saw."""
    print(f"{module}: by {' '.join(tests)}", flush=True)
    began = time.monotonic()
    if not tests or not shop.passes(tests, 1200):
        print(f"{module}: these tests fail as it is:\n{(shop.folder / 'output.txt').read_text()[-2000:]}")
        return 1
    took = time.monotonic() - began
    log = KIT / ".mutants" / f"{'-'.join(Path(module).with_suffix('').parts)}.jsonl"
    log.parent.mkdir(exist_ok=True)
    named = hashlib.sha256(
        "".join((KIT / name).read_text() for name in tests if (KIT / name).is_file()).encode()
    )
    known = dict(results(log))
    found = chosen(mutants((KIT / module).read_text()), most)
    left: list[Mutant] = []
    for mutant in found:
        key = f"{mutant.key} {named.hexdigest()[:16]}"  # other tests may see it
        if key not in known:
            known[key] = shop.caught(module, mutant, tests, PATIENCE * took + 20)
            with log.open("a") as file:
                file.write(json.dumps([key, known[key]]) + "\n")
        if not known[key]:
            left.append(mutant)
            print(f"  survived {module}:{mutant}", flush=True)
    print(f"{module}: {len(found) - len(left)} of {len(found)} caught, {took:.0f} s a survivor", flush=True)
    return len(left)


if __name__ == "__main__":
    sys.exit(main())
