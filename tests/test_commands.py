"""Messages name commands, and options, as their reader can type them."""

import pytest

from triplet import cli
from triplet.commands import spoken, typed


@pytest.fixture
def by_make(monkeypatch):
    monkeypatch.setenv("MAKELEVEL", "1")


@pytest.mark.parametrize(
    ("words", "program", "make"),
    [
        ("demo", "triplet demo", "make demo"),
        ("convert --run moco", "triplet convert --run moco", "make convert METHOD=moco"),
        ("eval --run seed1/moco", "triplet eval --run seed1/moco", "make eval RUN=seed1/moco"),
        (
            "pull weights --method moco --force",
            "triplet pull weights --method moco --force",
            "make pull PULL=weights METHOD=moco FORCE=1",
        ),
        (
            "explain --result 25.1 22.3 --config FILE --run a",
            "triplet explain --result 25.1 22.3 --config FILE --run a",
            'make explain RESULT="25.1 22.3" DETECTION=FILE RUN=a',
        ),
        (
            "finetune --run moco --hours 3 --precision tf32 SOLVER.BASE_LR=0.1",
            "triplet finetune --run moco --hours 3 --precision tf32 SOLVER.BASE_LR=0.1",
            'make finetune METHOD=moco HOURS=3 ARGS="--precision tf32 SOLVER.BASE_LR=0.1"',
        ),
        (
            "pull --force weights --method moco",
            "triplet pull --force weights --method moco",
            "make pull FORCE=1 ARGS=weights METHOD=moco",
        ),
        ("submit --dry", "triplet submit --dry", "triplet submit --dry"),
    ],
)
def test_a_command_is_named_as_it_can_be_typed(monkeypatch, words, program, make):
    assert typed(*words.split()) == program
    monkeypatch.setenv("MAKELEVEL", "1")
    assert typed(*words.split()) == make


def test_several_processes_are_started_by_make():
    assert typed("eval", "--run", "moco", gpus=8) == "make eval METHOD=moco GPUS=8"


def test_a_container_is_named_by_make_too(by_make, monkeypatch):
    monkeypatch.setenv("RUNTIME", "docker")
    assert typed("eval") == "make eval RUNTIME=docker"


def test_what_a_shell_or_make_would_read_is_quoted(by_make):
    assert typed("data", "my photos") == 'make data DATA="my photos"'
    assert typed("data", "a$b;c") == "make data DATA='a$$b;c'"


@pytest.mark.parametrize(
    ("command", "text", "make"),
    [
        ("convert", "use --config a/b.yaml --force", "use DETECTION=a/b.yaml FORCE=1"),
        (
            "pretrain",
            "name one with --config, or choose another --run",
            "name one with PRETRAIN, or choose another RUN",
        ),
        ("explain", "add --result BOX MASK, in percent", 'add RESULT="BOX MASK", in percent'),
        ("plan", "give yours as --seconds", "give yours as --seconds"),
        ("explain", 'make eval ARGS="--config c.yaml"', 'make eval ARGS="--config c.yaml"'),
        ("explain", """make eval ARGS='--config "c"'""", """make eval ARGS='--config "c"'"""),
        ("data", "nothing at a/b--data or --data/c", "nothing at a/b--data or --data/c"),
        ("plan", "FORCE by --json RESULT", "FORCE by JSON=1 RESULT"),
    ],
)
def test_options_are_makes_variables(by_make, monkeypatch, command, text, make):
    assert spoken(command, text) == make
    monkeypatch.delenv("MAKELEVEL")
    assert spoken(command, text) == text


def test_an_error_speaks_of_makes_variables(by_make, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--memory", "much"])
    expected = (
        "triplet plan: argument MEMORY: found much, expected a number above 0; see make plan ARGS=--help\n"
    )
    assert capsys.readouterr().err == expected
