"""The kit's commands as the reader of a message can type them: make's, or the program's own."""

import os
import re
import shlex

METHOD = "triplet"
"""The method that a command is about if the user names none; a run has the name of its method."""
WORDS = {"pull": "PULL", "pack": "IMAGES", "data": "DATA"}
"""Command -> make's variable for the words that are not options."""
DATA = "data train train-images val val-images val-share split-seed"
IMAGENET = "data=IMAGES val weights classes force"
OPTIONS = {
    "pull": "method from check plan force",
    "pack": "name force",
    "data": DATA,
    "demo": "data images seeds force",
    "pretrain": "engine config=PRETRAIN data=IMAGES weights force",
    "export": "weights format force",
    "convert": "config=DETECTION weights force",
    "finetune": f"config=DETECTION {DATA} seed schedule hours force",
    "plan": f"method config=DETECTION {DATA} gpus memory gpu preset hours schedule json",
    "explain": "result target method config=DETECTION log weights run=RUN gpus json",
    "eval": "data val val-images model config=DETECTION force",
    "predict": "images model config=DETECTION name score show most every force",
    "linear": f"config=LINEAR {IMAGENET}",
    "knn": f"config=KNN {IMAGENET}",
    "semi": f"percent list draw {IMAGENET}",
    "svm": "config=SVM data=VOC weights force",
    "report": "export",
    "doctor": "json",
}
"""Command -> its options that make has a variable for, of the same name unless another one stands here."""
OPTION = re.compile(
    r"""ARGS=("[^"]*"|'[^']*'|\S*)|(?<![\w/.-])--(?P<option>[a-z]+(-[a-z]+)*)(?![\w/-])"""
    r"( (?P<value>[A-Z]+( [A-Z]+)*\b|[\w./-]*/[\w./-]*\w))?"
)
"""An option in a sentence, with its value if that is a word such as FILE, or a path; ARGS and the names of
files stay as they are."""
FLAGS = ("force", "json", "check", "plan", "draw")
"""Options without a value, which make turns on by 1."""


class WrittenPercent(float):
    """A number that was written with a percent sign, and is shown with it."""

    def __str__(self) -> str:
        return f"{float(self):g}%"


def typed(command: str, *words: str, gpus: int = 1) -> str:
    """Return a command as the user can type it: of make if make started this process, else of ``triplet``.

    Args:
        command: name of the command.
        words: its arguments, as ``triplet`` takes them.
        gpus: number of processes; only make starts several.
    """
    if command not in OPTIONS or (gpus == 1 and not _by_make()):
        return shlex.join(["triplet", command, *words])
    named = _variables(command)
    variables: dict[str, list[str]] = {}
    name = WORDS.get(command, "ARGS")
    for before, word in zip(("", *words), words, strict=False):
        if word == "--run" and "run" not in named:
            name = "RUN" if "/" in words[words.index(word) + 1] else "METHOD"
        elif word.startswith("--"):
            name = named.get(word[2:], "ARGS")
        elif before[2:] in FLAGS or ("=" in word and not before.startswith("--")):  # or an override
            name = "ARGS"
        values = variables.setdefault(name, [])
        if name == "ARGS" or not word.startswith("--"):
            values.append(word)
    if gpus > 1:
        variables["GPUS"] = [str(gpus)]
    if os.environ.get("RUNTIME") == "docker":
        variables["RUNTIME"] = ["docker"]
    given = {
        name: (shlex.join(values) if name == "ARGS" else " ".join(values)) or "1"
        for name, values in variables.items()
    }
    return " ".join(["make", command, *(f"{name}={_quoted(value)}" for name, value in given.items())])


def again(command: str, *, force: bool = False, gpus: int = 1) -> str:
    """Return a command of a record as the user can type it again.

    Args:
        command: what was typed, ``triplet finetune --run a``.
        force: whether it is to start over, whatever the record's command did.
        gpus: number of processes.

    Returns:
        The command; '' if the record has none.
    """
    try:
        words = [word for word in shlex.split(command)[1:] if word != "--force"]
    except ValueError:  # a quotation without an end, which no shell has passed on
        return ""
    return typed(*words, *(["--force"] if force else []), gpus=gpus) if words else ""


def spoken(command: str, text: str) -> str:
    """Return a message about a command with make's words for its options, if make started this process."""
    if not _by_make():
        return text
    named = {"run": "RUN"} | _variables(command)

    def replaced(found: re.Match[str]) -> str:
        if (option := found["option"]) not in named:
            return found[0]
        if option in FLAGS:
            return f"{named[option]}=1{found[0].removeprefix(f'--{option}')}"
        return named[option] + (f"={_quoted(found['value'])}" if found["value"] else "")

    return OPTION.sub(replaced, text)


def _by_make() -> bool:
    return "MAKELEVEL" in os.environ  # make sets it for what it runs


def _variables(command: str) -> dict[str, str]:
    """Return make's variable for each option of a command that has one."""
    words = (word.partition("=") for word in OPTIONS.get(command, "").split())
    return {option: name or option.replace("-", "_").upper() for option, _, name in words}


def _quoted(value: str) -> str:
    """Quote a value for the shell, and its dollar signs for make."""
    value = value.replace("$", "$$")
    return f'"{value}"' if re.fullmatch(r"[\w@%+=:,./ -]* [\w@%+=:,./ -]*", value) else shlex.quote(value)
