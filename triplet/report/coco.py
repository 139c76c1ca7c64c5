"""COCO's table: each method's published AP, and the reached and expected AP of our runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from triplet.published.causes import Cause, ranked
from triplet.published.curves import FULL, NOISE, Band, Expected, LocalResult
from triplet.published.curves import expected as expected_ap
from triplet.published.facts import Facts
from triplet.published.methods import Method, PublishedAP
from triplet.published.reference import Reference
from triplet.runs import (
    STAGES,
    Run,
    Score,
    facts_of_run,
    groups,
    local_results,
    on_all_images,
    recipe,
    score,
)
from triplet.scores import TASKS


@dataclass(frozen=True)
class CocoRow:
    """AP in percent of one task of one method, trained one way."""

    method: str
    label: str
    task: str
    """box or mask."""
    readme: float | None
    """None for a method that is not in methods.yaml; it has no published AP at all."""
    zoo: tuple[float | None, float | None, float | None]
    """AP, AP50, AP75."""
    published: float | None
    """AP of the method's own weights."""
    source: str
    """The source of the AP of the method's own weights: README or zoo."""
    ours: tuple[Score | None, Score | None, Score | None] = (None, None, None)
    """Our AP, AP50, AP75, over seeds."""
    expected: Band | None = None
    verdict: str = ""
    """Verdict on our AP, compared with the published AP at the full schedule and with the expected band at
    another."""
    recipe: str = ""
    schedule: str = ""
    epochs: float | None = None
    gpus: str = ""
    runs: tuple[str, ...] = ()
    command: str = ""
    """Command that makes our result, if it is missing."""
    cause: str = ""
    """Key in ``causes``, if our result falls short."""

    @property
    def difference(self) -> float | None:
        """Our AP minus the published one."""
        return self.ours[0].mean - self.published if self.ours[0] and self.published is not None else None

    @property
    def seeds(self) -> int:
        return len(self.ours[0].values) if self.ours[0] else 0


def lines(runs: list[Run], methods: Mapping[str, Method]) -> list[CocoRow]:
    """Return the box and mask rows of every method: one for each way it was trained, or one with the
    command to run. Methods that are not in methods.yaml come last."""
    own = local_results(runs)
    found = []
    table = [run for run in runs if run.of_the_table]
    for name in dict.fromkeys([*methods, *(run.method for run in table)]):
        method = methods.get(name)
        of_method = [run for run in table if run.method == name]
        alike = sorted(groups(of_method), key=lambda group: (-group[0].iterations, group[0].label))
        others = [run for run in own if run.method != name]
        bands = _bands(name, method, of_method, others)
        for column in TASKS.values():
            bare = _published(name, method, column)
            found += [_line(bare, group, bands.get(_trained(group[0]))) for group in alike]
            if method and not alike:
                found.append(_with(bare, command=missing(name, runs, method)))
        if method and method.student:
            found += [
                _student(_published(name, method, column), method.student) for column in TASKS.values()
            ]
    return sorted(found, key=lambda line: list(TASKS.values()).index(line.task))


def _trained(run: Run) -> tuple[int, str]:
    """Return what the expected AP of a run's method depends on: length and recipe."""
    return run.iterations, recipe(run)


def _bands(
    name: str, method: Method | None, runs: Sequence[Run], others: Sequence[LocalResult]
) -> dict[tuple[int, str], Expected | None]:
    """Return the expected AP for the lengths and recipes of a method's runs on all images."""
    found = {}
    for length, used in {_trained(run) for run in runs if on_all_images(run)}:
        unlike = [f"another recipe than {method.recipe}"] if method and used != method.recipe else []
        found[length, used] = expected_ap(name, "c4", length, others, unlike, used)
    return found


def _published(name: str, method: Method | None, column: str) -> CocoRow:
    if method is None:
        return CocoRow(name, name, column, None, (None, None, None), None, "")
    zoo = method.zoo
    ap, ap50, ap75 = (getattr(zoo, column + end) if zoo else None for end in ("", "50", "75"))
    readme, own = (getattr(each, column) for each in (method.readme, method.of_its_weights))
    return CocoRow(name, method.label, column, readme, (ap, ap50, ap75), own, method.source)


def of_zoo(lines: Sequence[CocoRow]) -> str:
    """The methods whose published AP is the zoo's, since README's belongs to other weights."""
    found = dict.fromkeys(line.label.partition(" (")[0] for line in lines if line.source == "zoo")
    return " and ".join(found)


def _with(line: CocoRow, **changes: object) -> CocoRow:
    return CocoRow(**{**vars(line), **changes})


def _line(bare: CocoRow, group: list[Run], expected: Expected | None) -> CocoRow:
    task = next(key for key, column in TASKS.items() if column == bare.task)
    first = group[0]
    ours = tuple(score([run.value(task, metric) for run in group]) for metric in ("AP", "AP50", "AP75"))
    finetune = first.stages["finetune"]
    band = getattr(expected, bare.task) if expected and on_all_images(first) else None
    return _with(
        bare,
        label=bare.label + (f" ({first.experiment})" if first.experiment else ""),
        ours=ours,
        expected=band,
        verdict=verdict(ours[0], bare.published, band, first.iterations) if ours[0] else "",
        recipe=recipe(first),
        schedule=schedule(first.iterations),
        epochs=finetune.results.get("epochs"),
        gpus=machine(finetune.hardware.get("gpus", []), finetune.world_size),
        runs=tuple(run.name for run in group),
        cause=cause_of(group) if _short(ours[0], bare.published) else "",
    )


def _student(bare: CocoRow, student: PublishedAP) -> CocoRow:
    ours = Score((getattr(student, bare.task),))
    return _with(
        bare,
        label=f"{bare.label}, a student's run",
        ours=(ours, None, None),
        verdict=verdict(ours, bare.published, None, FULL),
        recipe="unknown",
        schedule="unknown",
        cause="the student's run",
    )


def verdict(ours: Score, published: float | None, band: Band | None, iterations: int) -> str:
    """Say whether our mean agrees with what is published or expected; '' if there is nothing.

    At the full schedule it may differ from the published AP by the NOISE of a single run and the standard
    error of our mean together. At another schedule it must lie within the expected band.
    """
    if published is None:
        return ""
    if iterations == FULL:
        difference = ours.mean - published
        if abs(difference) <= _noise(ours):
            return "within noise"
        return "above by more than noise" if difference > 0 else "below by more than noise"
    if band is None:
        return ""
    if band.holds(ours.mean):
        return "as expected of this length"
    return "above what is expected" if ours.mean > band.high else "below what is expected"


def schedule(iterations: int) -> str:
    """Return Detectron2's name (``2x``, ``1/4x``, ...) for a number of iterations of 16 images, or one that
    cannot be taken for such a name (``1.98x``)."""
    part = Fraction(iterations, FULL // 2)
    if _named(part):
        return f"{part}x"
    text = f"{float(part):.3g}"
    return f"{iterations} iterations" if _named(Fraction(text)) else f"{text}x"


def _named(part: Fraction) -> bool:
    return part.numerator == 1 or part.denominator == 1


def machine(gpus: list[str], processes: int) -> str:
    """Describe the machine, as ``8 x NVIDIA A100``, or say that it was a CPU."""
    return f"{processes} x {gpus[0]}" if gpus else "CPU"


def missing(name: str, runs: list[Run], method: Method) -> str:
    """Return the command for the next missing stage of a method of the table."""
    there = {stage for run in runs if run.name == name for stage in run.stages}
    left = [stage for stage in STAGES[1:] if stage not in there]
    if not left:  # evaluated, but on another data set
        return f"make eval METHOD={name} FORCE=1"
    own = "pretrain" in there or "convert" in there
    steps = " ".join(left) if own else f"pull {' '.join(left)} PULL=weights"
    return f"make {steps} METHOD={name}"


def causes(runs: list[Run], methods: Mapping[str, Method]) -> dict[str, list[Cause]]:
    """Find the causes for results that fall short of the published AP by more than noise, likeliest first.

    The keys are those of ``CocoRow.cause``: one for the student's run, of which only the numbers are known,
    and one for each group of our runs, as the mean over seeds.
    """
    found = {}
    for name, method in methods.items():
        if method.student:
            found["the student's run"] = _sorted(Facts(), name, (method.student.box, method.student.mask))
    for group in groups([run for run in runs if run.of_the_table and run.method in methods]):
        box, mask = (score([run.value(task, "AP") for run in group]) for task in TASKS)
        published = methods[group[0].method].of_its_weights
        if box and mask and (_short(box, published.box) or _short(mask, published.mask)):
            found[cause_of(group)] = _sorted(facts_of_run(group[0]), group[0].method, (box.mean, mask.mean))
    return found


def _short(ours: Score | None, published: float | None) -> bool:
    return ours is not None and published is not None and ours.mean < published - _noise(ours)


def _noise(ours: Score) -> float:
    """Return the NOISE of a single run and the standard error of our mean together."""
    error = (ours.deviation or 0.0) / math.sqrt(len(ours.values))
    return math.hypot(NOISE, error) + 1e-9


def cause_of(group: list[Run]) -> str:
    """Return the key of a group of runs in ``causes``."""
    return f"{group[0].label}, {recipe(group[0])}, {schedule(group[0].iterations)}"


def _sorted(known: Facts, method: str, result: tuple[float, float]) -> list[Cause]:
    return ranked(known, Reference.of_method(method), result)


@dataclass(frozen=True)
class Pair:
    """Box AP of one method at one length with both recipes."""

    label: str
    schedule: str
    authors: Score | None
    moco: Score | None

    @property
    def difference(self) -> float | None:
        return self.authors.mean - self.moco.mean if self.authors and self.moco else None


def pairs(runs: list[Run], methods: Mapping[str, Method]) -> list[Pair]:
    """Return the methods' box AP by recipe: README's, then this machine's at each length."""
    found = []
    for name, method in methods.items():
        published = Score((method.readme.box,))
        of_authors = method.recipe == "authors"
        found.append(
            Pair(
                f"{method.label}, README",
                "2x",
                published if of_authors else None,
                None if of_authors else published,
            )
        )
        of_method = [run for run in runs if run.of_the_table and run.method == name]
        for length in sorted({run.iterations for run in of_method}, reverse=True):
            alike = [run for run in of_method if run.iterations == length]
            by = {
                name: score([run.value("bbox", "AP") for run in alike if recipe(run) == name])
                for name in ("authors", "moco")
            }
            if any(by.values()):
                found.append(Pair(f"{method.label}, ours", schedule(length), by["authors"], by["moco"]))
    return found
