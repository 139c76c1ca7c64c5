"""The promises about the house: pins, names, sizes, imports."""

import ast
import re
import subprocess

import pytest

from tests.conftest import KIT
from tests.support.imports import PACKAGES, broken_rules, drawn_arrows, picture, read_imports

LOCK = (KIT / "docker" / "requirements.lock").read_text()


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=KIT, capture_output=True, text=True, check=True)
    return [KIT / name for name in listed.stdout.split("\0") if name and (KIT / name).exists()]


def modules():
    """The Python files of the packages."""
    return [
        path for path in tracked() if path.suffix == ".py" and path.relative_to(KIT).parts[0] in PACKAGES
    ]


def test_the_lock_follows_the_pins_and_checks_every_file():
    pins = re.findall(r"^([A-Z0-9_]+)_VERSION=(.+)$", (KIT / "docker" / "versions.env").read_text(), re.M)
    for name, version in pins:
        if name not in ("UV", "DETECTRON2_PYPI", "MMCV"):
            assert f"{name.lower().replace('_', '-')}=={version} " in LOCK, f"{name}: run make lock"
    packages = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(packages) > 50
    assert all("--hash=sha256:" in package for package in packages)


def test_a_pin_stands_in_one_place():
    """No version, commit or hash of docker/versions.env is written down anywhere else."""
    env = (KIT / "docker" / "versions.env").read_text()
    values = [v for v in re.findall(r"^[A-Z0-9_]+=(.+)$", env, re.M) if len(v) >= 12 and "://" not in v]
    values += [f"{name}=={v}" for name, v in (("torch", "2.11.0"), ("torchvision", "0.26.0"))]
    for path in tracked():
        if path.suffix in (".npz", ".png") or path.name in (
            "versions.env",
            "requirements.lock",
            "test_house.py",
        ):
            continue
        text = path.read_text()
        assert not [value for value in values if value in text], path


def test_no_file_and_no_function_grows_long():
    """400 lines a module, 150 the method, 60 a function, with docstrings; tables of data may be longer."""
    method = KIT / "triplet" / "pretrain" / "methods" / "triplet.py"
    assert len(method.read_text().splitlines()) <= 150
    for path in tracked():
        if path.suffix in (".py", ".sh", ".yaml", ".j2"):
            limit = 400 if path.suffix == ".py" else 500
            assert len(path.read_text().splitlines()) <= limit, path
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_no_method_is_asked_for_by_its_name():
    """What differs between methods of pretraining is in their modules; published numbers name theirs."""
    for path in modules():
        if path.relative_to(KIT).parts[1] not in ("published", "report"):
            found = re.search(r"method\W{1,4}\s*(==|!=|in\b|not in\b)\s*[\[({]?[\"'].*", path.read_text())
            assert not found, f"{path}: {found and found[0]}"


OLD_NAMES = re.compile(
    "first_here|Pace|Log|Watch|Steps|draw_view|Draws|Sizes|SideRange|TOGETHER|Wish|Own|Given|Wanted|ahead|"
    "settle|Pass|Truth|Squares|Centres|recolor|fed|pieces|of_coco|grids"
)
"""Names of this project's own that the field's names have replaced, and that mean nothing else here."""


def test_names_are_those_of_the_field():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            for name in (getattr(node, kind, None) for kind in ("name", "id", "arg", "attr")):
                old = isinstance(name, str) and OLD_NAMES.fullmatch(name.strip("_"))
                assert not old, f"{path}:{getattr(node, 'lineno', 0)}: {name}"


def defined(path):
    """The public names of a module's classes and type aliases; a TypeVar is neither."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, variable = node.targets[0].id, "TypeVar(" in ast.unparse(node.value)
            if name[0].isupper() and not name.isupper() and not variable:
                yield name


def test_a_class_or_alias_has_a_name_of_its_own():
    homes = {}
    for path in modules():
        for name in defined(path):
            homes.setdefault(name, []).append(str(path))
    assert {"Run", "Values", "Pixels"} <= homes.keys()
    assert not {name: places for name, places in homes.items() if len(places) > 1 and name[0] != "_"}


def test_test_modules_stand_alone_and_have_readable_names():
    """What several need is in a conftest, or in tests/support."""
    for path in (KIT / "tests").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^(from|import) tests\b.*\btest_", text, re.M), path
        for name in re.findall(r"^ *def (test_\w+)", text, re.M):
            assert len(name) <= 60, f"{path}: {name}"


def test_every_line_has_ruffs_own_layout():
    """Not even a table of numbers needs another one today."""
    for path in tracked():
        if path.suffix == ".py":
            assert not re.search(r"# fmt\s*:", path.read_text()), path


def test_shell_scripts_parse():
    for path in [*(KIT / "scripts").glob("*.s[hl]*"), KIT / ".ci" / "run"]:
        assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_setup_refuses_another_python(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docker").mkdir()
    for name in ("scripts/setup.sh", "docker/versions.env"):
        (tmp_path / name).write_bytes((KIT / name).read_bytes())
    done = subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "false"},
    )
    assert done.returncode == 2
    assert "found no Python 3.11 to 3.14" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.fixture(scope="module")
def imports():
    return read_imports(KIT)


def test_imports_follow_the_architecture(imports):
    """benchmarks stands on triplet, the command line on both, and nothing goes round in a circle."""
    assert "triplet.pretrain.trainer" in imports["triplet.pretrain.stage"]
    assert "benchmarks.detection.finetune" in imports["triplet.cli.detection"], (
        "imports inside functions count"
    )
    assert broken_rules(imports) == []


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        (
            {"triplet/page.py": "from benchmarks.a import b", "benchmarks/a/b.py": ""},
            "triplet.page imports benchmarks.a.b: of triplet, only triplet.cli may",
        ),
        (
            {"triplet/demo.py": "from triplet import cli", "triplet/cli/__init__.py": ""},
            "triplet.demo imports triplet.cli: nothing may import the command line",
        ),
        (
            {"triplet/a.py": "def f():\n    from triplet import b", "triplet/b.py": "from .a import f"},
            "modules import each other in a circle: triplet.",
        ),
        (
            {
                "triplet/a/one.py": "from triplet.b.one import x",
                "triplet/a/two.py": "",
                "triplet/b/one.py": "",
                "triplet/b/two.py": "import triplet.a.two",
            },
            "packages import each other in a circle: triplet.",
        ),
        (
            {
                "triplet/a/__init__.py": "from triplet.b import x",
                "triplet/a/one.py": "",
                "triplet/b.py": "import triplet.a.one",
            },
            "modules import each other in a circle: triplet.",
        ),
    ],
)
def test_a_broken_rule_is_named(tmp_path, files, rule):
    for name, text in {"triplet/__init__.py": "", "benchmarks/__init__.py": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert any(line.startswith(rule) for line in broken_rules(read_imports(tmp_path)))


def test_the_picture_of_the_architecture_is_the_imports(imports):
    assert drawn_arrows((KIT / "docs" / "architecture.md").read_text()) == picture(imports)


def test_the_architecture_page_names_all_packages_and_no_other():
    page = (KIT / "docs" / "architecture.md").read_text()
    folders = {
        path.parent.relative_to(KIT) for path in KIT.glob("*/*/__init__.py") if path.parts[-3] in PACKAGES
    }
    assert {f"`{folder}/`" for folder in folders} <= set(re.findall(r"`[\w/]+/`", page))
    for path in re.findall(r"`((?:triplet|benchmarks|configs|tests|docs)/[\w./]*)`", page):
        assert (KIT / path).exists(), path


def test_what_others_import_keeps_its_place():
    from triplet.pretrain import schedule
    from triplet.pretrain.loss import truncated_triplet_loss
    from triplet.pretrain.optim import LARS
    from triplet.weights import Backbone, read_backbone

    assert callable(truncated_triplet_loss)
    assert LARS.__module__ == "triplet.training.optim"
    assert schedule.learning_rate(0, peak=1.0, iterations_per_epoch=1, epochs=1, warmup_epochs=0) == 1.0
    assert schedule.ema_momentum(0, iterations=1, base=0.5) == 0.5
    assert read_backbone.__module__ == Backbone.__module__ == "triplet.weights.read"
