"""What README and docs tell a reader to type is parsed, and where that takes no machine, run."""

import pytest

from tests.support import blocks

BLOCKS = [block for page in blocks.pages() for block in blocks.find_blocks(page)]
SPANS = sorted({span for page in blocks.pages() for span in blocks.find_spans(page)})


def test_every_block_says_what_it_needs():
    assert len(BLOCKS) > 20
    assert [f"{block}: {block.needs!r}" for block in BLOCKS if block.needs not in blocks.NEEDS] == []


def test_every_command_of_a_block_is_one():
    for block in BLOCKS:
        assert block.commands, block
        for command in block.commands if block.needs not in blocks.RUN else []:
            try:
                blocks.check(command)
            except ValueError as error:
                pytest.fail(f"{block}: {command}\n{error}")


def test_every_command_within_a_sentence_is_one():
    for span in SPANS:
        try:
            blocks.check(span)
        except ValueError as error:
            pytest.fail(f"`{span}`: {error}")


def outputs(kind):
    return [
        pytest.param(command, shown, id=f"{block}: {command[:40]}")
        for block in BLOCKS
        if block.needs == kind
        for command, shown in blocks.split_console(block.text)
    ]


@pytest.mark.parametrize(("command", "shown"), outputs("run"))
def test_an_output_is_what_the_command_prints(tmp_path, command, shown):
    printed = blocks.run(command, tmp_path)
    assert blocks.same(shown, printed), f"make docs UPDATE=1 writes what it prints now:\n{printed}"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), outputs("slow"))
def test_a_slow_output_is_what_the_command_prints(tmp_path, command, shown):
    printed = blocks.run(command, tmp_path)
    assert blocks.same(shown, printed), f"make docs UPDATE=1 writes what it prints now:\n{printed}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make finetune SCHEDUEL=1/4x", "no variable SCHEDUEL"),
        ("make fintune", "No rule to make target"),
        ("make pull PULL=coco ARGS=--chek", "unrecognized arguments: --chek"),
        ("triplet plan --gpus none", "expected a whole number"),
        ("docker compose run --rm fintune", "no service fintune"),
        ("make submit STAGE=fintune ON=slurm", "invalid choice: 'fintune'"),
        ("make submit STAGE=chain ON=slurm ARGS=--hors=3", "unrecognized arguments: --hors=3"),
        (".venv/bin/python -m benchmarks.speed.engines --rond 2", "has no option --rond"),
        ("cd folder && make tset", "No rule to make target"),
        ("frobnicate", "unknown program"),
    ],
)
def test_a_wrong_command_is_seen(command, message):
    with pytest.raises(ValueError, match=message):
        blocks.check(command)


def test_a_changed_output_is_seen_and_rewritten(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```console run\n$ triplet --version\nwrong\n```\n")
    assert not blocks.same("wrong\n", blocks.run("triplet --version", tmp_path))
    assert blocks.update(page)
    assert "wrong" not in page.read_text()
    assert not blocks.update(page)
    assert blocks.same("a ... d\n", "a b c d\n")
    assert not blocks.same("a ... d\n", "a b c\n")
