"""One word for one thing: the command line, make and compose know the same commands and the same options.

Defaults are the command line's alone: make and compose pass on what the user has set, and nothing else.
"""

import argparse
import ast
import re
import shlex
import subprocess

import pytest
import yaml

from tests.conftest import KIT
from triplet import cli, commands
from triplet.coco_engines import FASTEST
from triplet.submit.jobs import STAGES

FORMER = {"pull-data": "pull", "download": "pull"}
"""Names of targets and services that were, and what they are called now."""
BESIDE = {"tensorboard"}
"""Services that are not a command of the kit's."""
ON_THE_HOST = {"submit"}
"""Commands that are no service: they talk to the host's scheduler, which no container reaches."""
SERVICES = yaml.safe_load((KIT / "compose.yaml").read_text())["services"]
(CHOICE,) = (
    action for action in cli.make_parser()._actions if isinstance(action, argparse._SubParsersAction)
)
COMMANDS = CHOICE.choices
SERVED = [name for name in COMMANDS if name not in ON_THE_HOST]
REQUIRED = {"explain": {"--result"}, "submit": {"--on"}}
VARIABLES = (
    "TRAIN TRAIN_IMAGES VAL_IMAGES VAL_SHARE SPLIT_SEED "
    "METHOD RUN FORCE ARGS PRETRAIN ENGINE LINEAR KNN PERCENT SVM VOC IMAGES VAL COCO NAME PULL SEED "
    "SEEDS DATA FROM CHECK PLAN WEIGHTS DETECTION HOURS SCHEDULE MEMORY RESULT LOG CLASSES LIST DRAW "
    "VERIFY EXPORT GPUS FORMAT MODEL SCORE SHOW MOST EVERY "
    "ON CPUS GPU PARTITION ACCOUNT EXTRA CONTAINER BUCKET DRY PRESET TARGET JSON"
)
SET = dict.fromkeys(VARIABLES.split(), "1")


def made(command, **variables):
    """What make would run, as words behind ``triplet COMMAND``."""
    given = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", command, *given],
        cwd=KIT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    said = done.stdout.replace("\\\n", " ")
    return re.findall(rf"bin/triplet {command}\b([^;\n]*)", said)[-1].replace('"', "").split()


def composed(service, **variables):
    """The words of a service's command as compose fills it in: ${NAME:-word}, ${NAME:+words}."""
    text = SERVICES[service].get("command", "")
    while found := re.search(r"\$\{(\w+):([-+])([^{}]*)\}", text):
        name, sign, words = found.groups()
        value = variables.get(name, "")
        text = text.replace(found[0], (value or words) if sign == "-" else (words if value else ""))
    return text.replace('"', "").split()


def options(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_each_command_is_a_target_and_a_service():
    helped = subprocess.run(["make", "help"], cwd=KIT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)", helped, re.M))
    assert set(COMMANDS) <= targets
    assert SERVICES.keys() - FORMER.keys() - BESIDE == set(COMMANDS) - ON_THE_HOST
    assert targets >= BESIDE
    for name in SERVED:
        assert SERVICES[name]["entrypoint"] in (["triplet", name], ["scripts/launch.sh", name])


def test_the_help_has_short_whole_lines():
    helped = subprocess.run(["make", "help"], cwd=KIT, capture_output=True, text=True, check=True).stdout
    texts = [line[25:] for line in helped.splitlines()]
    assert max(map(len, texts)) <= 100
    assert [text for text in texts if text.endswith((".", ",")) or not text] == []
    assert "# " not in helped


def test_former_names_still_work():
    assert SERVICES["download"] == SERVICES["pull"]
    assert "bin/triplet pull coco" in " ".join(
        subprocess.run(
            ["make", "-n", "pull-data", "PULL=coco"], cwd=KIT, capture_output=True, text=True
        ).stdout.split()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_make_and_compose_hold_no_default(command):
    assert made(command) == []
    assert command in ON_THE_HOST or composed(command) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_make_and_compose_pass_on_options_that_exist(command):
    known = set(COMMANDS[command]._option_string_actions)
    composes = [] if command in ON_THE_HOST else [composed(command, **SET)]
    for words in (made(command, **SET), *composes):
        assert options(words) <= known
        assert REQUIRED.get(command, set()) <= options(words)


@pytest.mark.parametrize("command", commands.OPTIONS)
def test_make_passes_on_what_messages_name(command):
    named = commands._variables(command)
    assert named.keys() <= {word[2:] for word in COMMANDS[command]._option_string_actions}
    for option, variable in named.items():
        # A config of eval's is that of another model.
        assert f"--{option}" in made(command, **{"MODEL": "1", variable: "1"}), variable
    if variable := commands.WORDS.get(command):
        assert "one" in made(command, **{variable: "one"})


@pytest.mark.parametrize("command", SERVED)
def test_make_and_compose_pass_on_the_same(command):
    """The flags of pull, report and demo aside: for compose they stand behind the service's name."""
    if command in ("pull", "report", "demo"):
        return
    given = {name: value for name, value in SET.items() if name != "FORCE"}
    assert options(made(command, **given)) == options(composed(command, **given))


def test_the_makefile_sets_no_variable_of_an_option():
    """These are how and where a command runs, not what it is told."""
    kept = set(re.findall(r"^(\w+) \?=", (KIT / "Makefile").read_text(), re.M))
    assert kept == {"RUNTIME", "GPUS", "NODES", "RDZV"}


def test_a_help_text_repeats_no_default():
    """It takes a default from the option or from the constant that declares it."""
    for path in (KIT / "triplet" / "cli").glob("*.py"):
        assert not re.findall(rf"default: (?:\d|{commands.METHOD}|{FASTEST}).*", path.read_text()), path


def test_the_classes_of_options_have_no_defaults_of_their_own():
    """What a user leaves out is None, or nothing; any other default is the command line's."""
    found = set()
    for path in [*(KIT / "triplet").rglob("*.py"), *(KIT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
                found.add(node.name)
                given = [each.value for each in node.body if isinstance(each, ast.AnnAssign) and each.value]
                assert not [value for value in map(ast.literal_eval, given) if value], (
                    f"{path}: {node.name}"
                )
    assert {"PredictOptions", "ExplainOptions", "FinetuneOptions"} <= found


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_is_told_what_make_tells_the_stage(stage):
    """The run, --force, and HOURS, MEMORY and SEEDS aside, which mean the job's own."""
    aside = ("METHOD", "RUN", "FORCE", "HOURS", "MEMORY", "SEEDS", "CHECK", "PLAN", "VERIFY")
    given = {name: value for name, value in SET.items() if name not in aside}
    shown = made("submit", STAGE=stage, **given)
    told = shlex.split(" ".join(shown))[0].split()
    assert told == [stage, *made(stage, **given)]
