"""Inspection without fetching: ``triplet pull --check`` and ``triplet pull --plan``."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from triplet import paths, records
from triplet.commands import spoken, typed
from triplet.errors import KitError
from triplet.progress import amount, duration, say
from triplet.pull import checksums
from triplet.pull.download import plain, speed
from triplet.pull.fetch import DOWNLOADS, left_to_fetch, verify
from triplet.pull.stage import Target
from triplet.pull.verify import problems
from triplet.signals import graceful

PROBE = 5
"""Seconds for which to measure the speed of a download."""


def check(wanted: Sequence[Target]) -> int:
    """Verify the local files without the network; print a line for everything missing or wrong.

    Returns:
        0 if everything is complete and as recorded, else 2.

    Raises:
        Interrupted: stopped by a signal.
    """
    wrong = 0
    for target in wanted:
        say(f"pull: checking {target.name}")
        found = list(_wrong(target))
        for line in found:
            say(f"pull: {target.name}: {line}")
        if not found:
            say(f"pull: {target.name}: whole ({paths.portable(target.folder)})")
        wrong += bool(found)
    if wrong:
        again = typed("pull", "NAME", "--force")
        say(f"pull: incomplete or wrong: {wrong} of {len(wanted)}; to start one over: {again}")
    return 2 if wrong else 0


def _wrong(target: Target) -> Iterator[str]:
    try:
        record = records.read(target.folder)
    except KitError as error:
        yield str(error)
        return
    missing = [name for name, path in target.outputs.items() if not path.exists()]
    if missing:
        came = sum(path.stat().st_size for path in (target.folder / DOWNLOADS).glob("*") if path.is_file())
        begun = f" ({amount(came)} came so far)" if came else ""
        yield f"{', '.join(missing)} not there{begun}; run: {_pull(target)}"
        return
    if record is None:
        yield f"no pull has verified it; run: {_pull(target)}"
    elif record.config != {"source": target.source.identity()}:
        yield f"it was pulled by another configs/sources.yaml; run: {_pull(target, '--force')}"
    recorded = record.outputs if record else {}
    for name, path in target.outputs.items():
        if name in recorded and records.Artifact.of(path).sha256 != recorded[name].sha256:
            yield f"{name} is not what was recorded (names or sizes of files, or bytes, have changed)"
    if target.method:
        yield from _wrong_weights(target)
    else:
        yield from problems(target.folder, target.source.expect)


def _pull(target: Target, *more: str) -> str:
    return typed("pull", *target.name.split(), *more)


def _wrong_weights(target: Target) -> Iterator[str]:
    from triplet.pull.backbone import describe  # torch takes seconds

    for file in target.source.files:
        path, lock = target.folder / file.name, checksums.Lock()
        try:
            with graceful() as stop:
                verify(path, file, file.checksum or lock.find(f"{target.method}/{file.name}"), stop)
            describe(path, untrained=target.untrained)
        except KitError as error:
            yield str(error)


def plan(wanted: Sequence[Target]) -> None:
    """Print what would be fetched, its size, the free disk, and the time at a speed measured now."""
    table = Table(box=None, pad_edge=False)
    for column in ("source", "file", "to fetch", "from"):
        table.add_column(column, overflow="fold")
    total, disks = 0, dict[int, tuple[Path, int]]()
    largest: tuple[int, str, str | None] | None = None
    for target in wanted:
        say(f"pull: {target.name}: {target.source.about}; {target.source.licence} ({target.source.terms})")
        if all(path.exists() for path in target.outputs.values()):
            table.add_row(target.name, "", "nothing", "there already")
            continue
        for file, left in left_to_fetch(target.source, target.folder).items():
            urls = target.source.urls(file)
            table.add_row(
                target.name,
                file.name,
                "unknown" if left is None else amount(left),
                plain(urls[0]) if urls else spoken("pull", "by hand, then --from PATH"),
            )
            total += (left or 0) if urls else 0
            if urls and left and (largest is None or left > largest[0]):
                largest = (left, urls[0], target.source.token(urls[0]))
            place = _existing(target.folder)
            needed = (left or 0 if urls else 0) + file.bytes_unpacked
            disk = place.stat().st_dev
            disks[disk] = (place, disks.get(disk, (place, 0))[1] + needed)
    Console(width=None if Console().is_terminal else 160).print(table)
    for place, needed in disks.values():
        free = shutil.disk_usage(place).free
        verdict = "enough" if free > needed else "NOT ENOUGH"
        say(f"pull: {place}: {amount(needed)} needed at most, {amount(free)} free: {verdict}")
    if largest:
        try:
            rate = speed(largest[1], largest[2], PROBE)
        except KitError as error:
            say(f"pull: no speed could be measured: {error}")
        else:
            say(f"pull: {amount(total)} take {duration(total / rate)} at {amount(rate)}/s, measured now")


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
