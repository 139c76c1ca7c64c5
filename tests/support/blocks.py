"""Fenced blocks of README and docs: every command is parsed, and those marked ``run`` are run and compared.

Each block of language ``bash`` (commands) or ``console`` (``$ command``, then its output) says in one
word behind the language what it needs:

- ``run``: nothing; the fast tests run it. ``slow``: nothing but some seconds; the slow tests run it.
- ``gpu``, ``network``, ``docker``, ``data`` (data sets, weights or an earlier stage), ``time`` (minutes),
  ``host`` (a tool or machine that the kit does not bring): the command line is parsed by what would run
  it, and not run.

``python -m tests.support.blocks`` runs those two kinds and writes their output into the pages, and so
does ``make docs UPDATE=1``.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import yaml

from triplet import cli

KIT = Path(__file__).parent.parent.parent
RUN = ("run", "slow")
NEEDS = (*RUN, "gpu", "network", "docker", "data", "time", "host")
BLOCK = re.compile(r"^```(bash|console)\b[ ]*([^\n]*)\n(.*?)^```$", re.M | re.S)
ANCHOR = re.compile(r"\[`(\w+)`\]\(([^)#\s]+\.py)#L\d+\)")
SPAN = re.compile(r"`((?:make|triplet|docker compose run) [^`]+)`")
PASSING = [
    (re.compile(r"until \w{3} \d\d \w{3} \d\d:\d\d"), "until ..."),
    (re.compile(r"\d+\.\d GB counted"), "... GB counted"),
    (re.compile(r"memory    \d+\.\d of"), "memory    ... of"),
]
"""Parts of an output that are of the hour, or of a count that differs a little from run to run."""
FREE = {"git", "cd", "cp", "ls", "mkdir", "docker", "python3", "apptainer", "kubectl", "wandb"}
"""Programs whose arguments are not looked at."""
ELLIPSIS = "..."


class Block(NamedTuple):
    """A fenced block of a page, and the line that it begins on."""

    page: Path
    line: int
    language: str
    needs: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands, each on one line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def __str__(self) -> str:
        return f"{self.page.relative_to(KIT)}:{self.line}"


def pages() -> list[Path]:
    """README and every page of docs."""
    return [KIT / "README.md", KIT / "CONTRIBUTING.md", *sorted((KIT / "docs").glob("*.md"))]


def find_blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of commands of a page."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2].strip(), found[3])


def find_spans(page: Path) -> Iterator[str]:
    """Yield the commands within sentences: code that begins with make, triplet or docker compose run."""
    for found in SPAN.finditer(BLOCK.sub("", page.read_text())):
        if ELLIPSIS not in found[1]:
            yield " ".join(found[1].split())


def check(command: str) -> None:
    """Parse a command line by what would run it.

    Raises:
        ValueError: with what is wrong.
    """
    words = shlex.split(command, comments=True)
    while "&&" in words:
        first, words = words[: words.index("&&")], words[words.index("&&") + 1 :]
        _check_words(first)
    _check_words(words)


def _check_words(words: list[str]) -> None:
    environment = []
    while words and re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
        environment.append(words.pop(0))
    program, *arguments = words
    if program == "make":
        _check_make(tuple(arguments))
    elif program in ("triplet", ".venv/bin/triplet"):
        parse(arguments)
    elif program == "docker" and arguments[:2] == ["compose", "run"]:
        _check_compose(arguments[2:], environment)
    elif program == ".venv/bin/python" and arguments[0] == "-m":
        _check_module(*arguments[1:])
    elif program.startswith((".venv/bin/", ".ci/", "scripts/")):
        if not (KIT / program).exists():
            raise ValueError(f"no program {program}")
    elif program not in FREE:
        raise ValueError(f"unknown program {program}")


def parse(arguments: Sequence[str]) -> None:
    """Parse the arguments of triplet; ValueError with the parser's own message."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = cli._parse(arguments)
            for stage in parsed.stages if parsed.stage == "submit" else ():
                cli._parse(shlex.split(stage))
    except SystemExit as stop:
        if stop.code:
            raise ValueError(said.getvalue().strip()) from None


@cache
def _known_variables() -> frozenset[str]:
    """Variables that the Makefile or one of the scripts behind it reads."""
    texts = [path.read_text() for path in (KIT / "scripts").glob("*.sh")]
    texts += [
        (KIT / name).read_text()
        for name in ("Makefile", "docker/image.yaml", "compose.yaml", "tests/conftest.py")
    ]
    texts += [path.read_text() for path in (KIT / "tests" / "openselfsup").glob("conftest.py")]
    return frozenset(re.findall(r"[A-Z][A-Z0-9_]+", "\n".join(texts)))


@cache
def expand_make(arguments: tuple[str, ...]) -> str:
    """Return what make would run, one command a line; ValueError where it refuses."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", *arguments],
        cwd=KIT,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout.replace("\\\n", " ")


def _check_make(arguments: tuple[str, ...]) -> None:
    for word in arguments:
        name, sign, _ = word.partition("=")
        if sign and name not in _known_variables():
            raise ValueError(f"no variable {name}")
    for line in expand_make(arguments).splitlines():
        for found in re.finditer(r"\.venv/bin/triplet ([a-z][^;|]*)", line):
            parse(shlex.split(found[1]))
        if found := re.search(r"docker compose run ([^;]*)", line):
            _check_compose(shlex.split(found[1]), [])


def _check_compose(arguments: list[str], environment: list[str]) -> None:
    while arguments[0].startswith("-"):
        del arguments[: 2 if arguments[0] in ("-v", "--entrypoint") else 1]
    service, *rest = arguments
    services = yaml.safe_load((KIT / "compose.yaml").read_text())["services"]
    if service not in services:
        raise ValueError(f"no service {service}")
    for word in environment:
        if word.partition("=")[0] not in _known_variables():
            raise ValueError(f"no variable {word}")
    if rest and services[service]["entrypoint"][0] == "triplet":
        parse([services[service]["entrypoint"][1], *rest])


def _check_module(module: str, *arguments: str) -> None:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {module}")
    source = Path(spec.origin).read_text()
    for option in arguments:
        if option.startswith("--") and f'"{option}"' not in source:
            raise ValueError(f"{module} has no option {option}")


def run(command: str, folder: Path) -> str:
    """Run a command of triplet, or of make, in this process; return all that it printed.

    Its data sets, runs and reports are below ``folder``.
    """
    places = {
        f"TRIPLET_{name.upper()}": str(folder / name) for name in ("datasets", "checkpoints", "reports")
    }
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        expanded = expand_make(tuple(words[1:]))
        found = re.search(r"\.venv/bin/triplet ([a-z][^;|]*)", expanded)
        if not found:
            return subprocess.run(words, cwd=KIT, capture_output=True, text=True, check=True).stdout
        words = ["triplet", *shlex.split(found[1])]
        places["MAKELEVEL"] = "1"
    assert words[0] in ("triplet", ".venv/bin/triplet"), f"only triplet and make can be run: {command}"
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {**places, "COLUMNS": "110"}),
        contextlib.chdir(KIT),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        contextlib.suppress(SystemExit),
    ):
        cli.main(words[1:])
    return tidy(said.getvalue().replace(f"{folder}/", "").replace(f"{KIT}/", ""))


def tidy(output: str) -> str:
    """Replace what changes from run to run by an ellipsis, and blanks at the ends of lines by nothing."""
    for pattern, instead in PASSING:
        output = pattern.sub(instead, output)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def split_console(text: str) -> list[tuple[str, str]]:
    """Split a console block into commands, each with the output under it."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def same(shown: str, printed: str) -> bool:
    """Compare an output with what a page shows of it, in which ``...`` stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in tidy(shown).split(ELLIPSIS))
    return re.fullmatch(pattern, printed, re.S) is not None


def update(page: Path) -> bool:
    """Write outputs, and lines that links name, into a page where they differ; returns whether any did."""
    text = before = page.read_text()
    for block in find_blocks(page):
        if block.language != "console" or block.needs not in RUN:
            continue
        parts = []
        for command, shown in split_console(block.text):
            with tempfile.TemporaryDirectory() as folder:
                printed = run(command, Path(folder))
            parts.append(f"$ {command}\n{shown if same(shown, printed) else printed}")
        text = text.replace(f"{block.needs}\n{block.text}```", f"{block.needs}\n{''.join(parts)}```")
    text = ANCHOR.sub(lambda found: _anchor(page, *found.groups()), text)
    if text != before:
        page.write_text(text)
    return text != before


def _anchor(page: Path, name: str, path: str) -> str:
    """Point a link to a function at the line where it stands today."""
    lines = (page.parent / path).read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if re.match(rf"(def|class) {name}\b", line))
    return f"[`{name}`]({path}#L{number})"


if __name__ == "__main__":
    for each in [Path(name).resolve() for name in sys.argv[1:]] or pages():
        if update(each):
            print(f"docs: {each.relative_to(KIT)} is as the code is today")
