"""README and docs: figures come from results, links lead somewhere, and what is named exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.docs import diagram, figures, reference
from tests.conftest import KIT
from tests.support import blocks
from tests.support.imports import drawn_arrows
from triplet import cli
from triplet.published.methods import load_methods

PAGES = blocks.pages()
README = (KIT / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (KIT / "Makefile").read_text(), re.M))
NAV = yaml.load((KIT / "mkdocs.yml").read_text(), Loader=yaml.BaseLoader)["nav"]
FORMS = KIT / ".github" / "ISSUE_TEMPLATE"
MADE = {"commands.md", "configs.md", "contributing.md", "changelog.md"}
"""Pages that exist on the site alone."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_is_that_of_its_file(page):
    found = list(figures.find_figures(page.read_text()))
    wrong = [figures.mistake(figure, KIT / "benchmarks" / "results") for figure in found]
    assert [text for text in wrong if text] == []
    if page.name in ("README.md", "performance.md", "start.md"):
        assert found


@pytest.mark.parametrize(
    ("text", "path", "right"),
    [
        ("1.5", "cases[0].ratios[0]", True),
        ("1.6", "cases[0].ratios[0]", False),
        ("1.5", "cases[0].ratio[0]", False),
        ("1.5 GiB", "hardware.memory", False),
        ("23.5 GiB", "hardware.memory", True),
    ],
)
def test_a_wrong_figure_is_seen(text, path, right):
    figure = figures.Figure(text, "speed-cpu.json", path)
    assert (figures.mistake(figure, KIT / "benchmarks" / "results") is None) == right


def test_the_table_to_fill_has_the_published_numbers():
    rows = dict(re.findall(r"^\| ([\w -]+) \| ([\d./ |]+)\| *\|$", README, re.M))
    expected = {}
    for method in load_methods().values():
        zoo = f"{method.zoo.box} / {method.zoo.mask}" if method.zoo else ""
        expected[method.label] = [f"{method.readme.box} / {method.readme.mask}", zoo]
    assert {
        name: [cell.strip() for cell in cells.split("|")[:2]] for name, cells in rows.items()
    } == expected


def test_the_readme_fits_two_screens():
    assert len(README.splitlines()) <= 150


def test_every_target_of_the_readme_exists():
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert {"demo", "test", "finetune"} <= named <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_target_that_is_named_exists(page):
    text = page.read_text()
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= TARGETS
    for path in re.findall(r"(?<![\w/])(?:configs|docker|triplet|benchmarks|scripts)/[\w./-]+\.\w+", text):
        assert (KIT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    """Also into a file: a link to a line names what stands there."""
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)[^)]*\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target or not path or path in MADE:
            continue
        assert (page.parent / path).exists(), f"{page.name}: {target}"
        if line := re.fullmatch(r"L(\d+)", anchor):
            there = (page.parent / path).read_text().splitlines()[int(line[1]) - 1]
            assert re.match(rf"(def|class) {text.strip('`')}\b", there), (
                f"make docs UPDATE=1 mends {target}"
            )


def test_every_page_is_in_the_navigation():
    def named(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from named(value) if isinstance(value, list) else [value]

    listed = list(named(NAV))
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.name for path in (KIT / "docs").glob("*.md")} | MADE


def test_the_reference_names_every_command_and_option():
    page = reference.commands()
    (choice,) = (a for a in cli.make_parser()._actions if hasattr(a, "choices") and a.dest == "stage")
    for name, command in choice.choices.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in command._option_string_actions:
            assert f"`{option}`" in section or option in ("-h", "--help"), f"{name} {option}"


def test_the_reference_names_every_config_and_key():
    page = reference.configs()
    for path in (KIT / "configs").rglob("*.yaml"):
        assert f"- `{path.name}`" in page.split(f"\n`{path.parent.relative_to(KIT)}/`\n")[1]
    assert "| `learning_rate` | number above 0 | `4.8` |" in page
    assert "Optimiser steps between checkpoints." in page


def test_advice_is_on_messages_that_exist():
    page = (KIT / "docs" / "troubleshooting.md").read_text()
    sources = [path for name in ("triplet", "benchmarks", "scripts") for path in (KIT / name).rglob("*.*")]
    code = "".join(path.read_text() for path in sources if path.suffix in (".py", ".sh"))
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(messages) > 4
    for part in [part.strip() for message in messages for part in message.split("...")]:
        assert part in code, part


def test_the_list_of_messages_has_what_the_code_raises():
    assert "- no config at …; see configs/ for those of the kit\n" in reference.messages()


def test_the_diagram_draws_every_box_and_arrow():
    page = (KIT / "docs" / "architecture.md").read_text()
    (block,) = re.findall(r"```mermaid\n(.*?)```", page, re.S)
    picture = diagram.draw(block, "imports")
    arrows = drawn_arrows(page)
    assert picture.count("<rect") == len({end for arrow in arrows for end in arrow})
    assert picture.count("marker-end=") == len(arrows)
    assert 'aria-label="imports"' in picture


def test_a_picture_that_is_no_flowchart_is_refused():
    with pytest.raises(ValueError, match="unexpected end"):
        diagram.draw("flowchart TD\n  a -->", "broken")


def test_workflows_call_what_exists():
    for path in (KIT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for command in [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]:
            for line in command.splitlines():
                blocks.check(line)


@pytest.mark.parametrize("form", sorted({path.name for path in FORMS.glob("*.yml")} - {"config.yml"}))
def test_an_issue_form_is_one_that_github_takes(form):
    content = yaml.safe_load((FORMS / form).read_text())
    assert {"name", "description", "body"} <= content.keys() <= {"name", "description", "labels", "body"}
    assert all(type(content[key]) is str for key in ("name", "description"))
    asked = [field for field in content["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in asked]
    assert len({*ids}) == len(ids) > 0
    for field in content["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        if field["type"] == "markdown":
            assert type(field["attributes"]["value"]) is str
        else:
            assert type(field["attributes"]["label"]) is str
            assert field.get("validations", {"required": True}) == {"required": True}


def test_templates_name_targets_and_pages_that_exist():
    files = [*FORMS.glob("*.yml"), FORMS.parent / "pull_request_template.md"]
    text = "\n".join(path.read_text() for path in files)
    commands = set(re.findall(r"`(make [^`]+)`", text))
    assert {"make doctor", "make check"} <= commands
    for command in commands:
        blocks.check(command)
    named = re.findall(r"[\w/]+\.md|benchmarks/\w+", text)
    assert "docs/student.md" in named
    assert [path for path in named if not (KIT / path).exists()] == []


def test_actionlint_finds_nothing_in_the_workflows(tmp_path):
    program = Path(sys.executable).with_name("actionlint")
    workflows = sorted((KIT / ".github" / "workflows").glob("*.yml"))
    assert subprocess.run([program, *workflows], capture_output=True, text=True).stdout == ""
    broken = tmp_path / "broken.yml"
    broken.write_text(workflows[0].read_text().replace("runs-on: ubuntu-24.04", "runs-on: nowhere"))
    said = subprocess.run([program, broken], capture_output=True, text=True).stdout
    assert 'label "nowhere" is unknown' in said


def test_the_repository_has_one_address():
    """That of CITATION.cff, once it has one; the site asks for no other."""
    known = yaml.safe_load((KIT / "CITATION.cff").read_text()).get("repository-code")
    if known:
        assert f"git clone {known}" in README
    assert "repo_url" not in (KIT / "mkdocs.yml").read_text()


def test_the_docs_need_no_package_of_the_kit_itself():
    """`make setup` installs nothing for the site; `make docs` does."""
    assert "--extra docs" not in (KIT / "scripts" / "setup.sh").read_text()
    printed = subprocess.run(
        ["make", "-n", "docs"], cwd=KIT, capture_output=True, text=True, check=True
    ).stdout
    assert "--extra docs" in printed
    assert "mkdocs build --strict" in printed
