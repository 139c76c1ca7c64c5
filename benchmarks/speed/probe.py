"""``python -m benchmarks.speed.probe``: what a GPU does with this kit, in one command and a given time.

For a bare machine: this process needs the standard library alone. Each probe is a process with a limit of
its own, the file is written anew (atomically) before and after each, and none is begun that the rest of the
time cannot hold. A probe that fails, is cut off or makes no sense here leaves its reason, and what it had
measured by then. Wheels of what is missing (scripts/wheels.sh) are unpacked and put in the probes' path.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from triplet import environment, files

KIT = Path(__file__).parent.parent.parent
WHEELS = KIT / "artifacts" / "wheels"
PROBES_MODULE, COMPARISON_MODULE = "benchmarks.speed.probes", "benchmarks.speed.run"


class Probe(NamedTuple):
    """One process and its time limit."""

    name: str
    seconds: float
    module: str = PROBES_MODULE


PROBES = (
    Probe("machine", 20),
    Probe("ceilings", 15),
    Probe("correctness", 30),
    Probe("eager", 40),
    Probe("compiled", 120),
    Probe("recolouring", 20),
    Probe("released", 40),
    Probe("views", 40),
    Probe("memory", 25),
    Probe("detection", 60),
    Probe("variants", 60),
)
"""The probes in order, the most important first. The last one takes the remaining time."""
COMPARISON = (
    Probe("step", 900, COMPARISON_MODULE),
    Probe("head", 120, COMPARISON_MODULE),
    Probe("update", 120, COMPARISON_MODULE),
    Probe("data", 180, COMPARISON_MODULE),
    Probe("detection", 300, COMPARISON_MODULE),
)
"""Further probes of ``--everything``: the parts of ``make speed``, which compare with the released code."""


class EndRequested(BaseException):
    """Raised if a signal asks for the end."""


@dataclass
class Report:
    """The results file, which is complete at any moment."""

    path: Path
    content: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)

    def save(self) -> None:
        """Rewrite the file; a kill at any moment leaves either the old or the new version."""
        text = json.dumps({**self.content, "probes": self.entries}, indent=1)
        files.write_text(self.path, text + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probes, print a table; return 0, 1 if a probe failed, 2 for bad options, 143 if stopped."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(argv)
    probes = [*PROBES, *(COMPARISON if arguments.everything else ())]
    content = {
        "command": shlex.join(["python", "-m", "benchmarks.speed.probe", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "seconds": arguments.seconds,
        "tiny": arguments.tiny,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF"),
        "complete": False,
    }
    report = Report(arguments.output, content)
    report.entries = [
        {"name": _title(probe), "seconds": probe.seconds, "status": "not begun", "results": {}}
        for probe in probes
    ]
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), _stop)
    try:
        report.save()
        with tempfile.TemporaryDirectory(prefix="probe") as temporary:
            _run_all(probes, report, arguments, Path(temporary))
    except OSError as error:
        print(f"benchmarks.speed.probe: {error}", file=sys.stderr)
        return 2
    except EndRequested:
        for entry in report.entries:
            if entry["status"] == "running":
                entry.update(status="interrupted", reason="a signal asked for the end")
        report.save()
        print(table(report), flush=True)
        return 143
    print(table(report), flush=True)
    return int(any(entry["status"] in ("failed", "timed out") for entry in report.entries))


def _stop(number: int, frame: FrameType | None) -> None:
    raise EndRequested


def _title(probe: Probe) -> str:
    return probe.name if probe.module == PROBES_MODULE else f"comparison: {probe.name}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.probe", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--seconds", type=float, default=450.0, help="of all probes together (default: 450)"
    )
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="default: gpu.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: every line runs, no number counts")
    parser.add_argument(
        "--wheels",
        type=Path,
        default=WHEELS,
        metavar="FOLDER",
        help="of scripts/wheels.sh (default: artifacts/wheels)",
    )
    parser.add_argument("--everything", action="store_true", help="compare with the released code as well")
    parser.add_argument(
        "--comparison", default="", metavar="OPTIONS", help="options for benchmarks.speed.run, in one word"
    )
    return parser


def _run_all(
    probes: Sequence[Probe], report: Report, arguments: argparse.Namespace, temporary: Path
) -> None:
    """Run the probes one after the other, as long as the time lasts."""
    began = time.monotonic()
    surroundings = _surroundings(arguments.wheels, temporary)
    for number, (probe, entry) in enumerate(zip(probes, report.entries, strict=True)):
        left = arguments.seconds - (time.monotonic() - began)
        if left < probe.seconds:
            entry.update(status="skipped", reason=f"needs {probe.seconds:.0f} s; {left:.0f} s were left")
            report.save()
            continue
        # Time that earlier probes did not need goes to the next one.
        limit = max(probe.seconds, left - sum(later.seconds for later in probes[number + 1 :]))
        entry["status"] = "running"
        report.save()
        print(f"probe: {entry['name']}, at most {limit:.0f} s", flush=True)
        started = time.monotonic()
        try:
            entry.update(_run(probe, limit, surroundings, arguments, temporary / str(number)))
        finally:
            entry["took"] = round(time.monotonic() - started, 2)
            report.save()
        if number == 0:
            surroundings.setdefault("PYTORCH_ALLOC_CONF", _allocator(entry))
            report.content["allocator"] = surroundings["PYTORCH_ALLOC_CONF"]
    report.content["complete"] = True
    report.save()


def _allocator(machine: dict[str, Any]) -> str:
    """Return the settings that the machine's probe found to work, such as segments that grow in place."""
    return f"expandable_segments:{machine['results'].get('expandable_segments') == 'yes'}"


def _surroundings(wheels: Path, temporary: Path) -> dict[str, str]:
    """Return the probes' environment, with the kit and the content of the wheels on the path."""
    paths, unpacked = [str(KIT)], temporary / "wheels"
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        paths[1:] = [str(unpacked)]
    if inherited := os.environ.get("PYTHONPATH"):
        paths.append(inherited)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _run(
    probe: Probe, limit: float, surroundings: dict[str, str], arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Run one probe; return its status, reason and results."""
    folder.mkdir()
    results, log = folder / "results.json", folder / "log"
    command = [sys.executable, "-m", probe.module, probe.name, "--output", str(results)]
    command += ["--device", arguments.device] if arguments.device else []
    if probe.module == PROBES_MODULE:
        command += ["--seconds", str(limit), "--earlier", str(arguments.output.absolute())]
        command += ["--tiny"] if arguments.tiny else []
    else:
        command += [*(["--smoke"] if arguments.tiny else []), *shlex.split(arguments.comparison)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            env=surroundings,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    found = _read(results)
    outcome: dict[str, Any] = {"limit": round(limit, 1), "results": found}
    reason = found.pop("reason", None) or _last_line(log)
    if code is None:
        return {
            **outcome,
            "status": "timed out",
            "reason": f"did not end within {limit:.0f} s; last: {reason}",
        }
    if code == 0:
        status = "skipped" if found.pop("senseless", False) else "done"
        return {**outcome, "status": status, **({"reason": reason} if status == "skipped" else {})}
    how = f"killed by {signal.Signals(-code).name}; last: {reason}" if code < 0 else reason
    return {**outcome, "status": "failed", "reason": how}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill whatever is left of a probe, its loader processes included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing was printed")


def end_with_parent() -> None:
    """Run in a probe's thread: end when the parent does, which holds the other end of standard input."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        os.read(0, 1)  # not sys.stdin, whose lock the end of Python wants
        os._exit(1)


def table(report: Report) -> str:
    """Return a table with a line for each probe: its results, or why it has none."""
    lines = ["", f"{'probe':<24}{'status':<13}{'s':>7}  found"]
    for number, entry in enumerate(report.entries, 1):
        told = [entry["results"].get("summary") or _ratios(entry["results"]), entry.get("reason")]
        name, found = f"{number:>2} {entry['name']}", "; ".join(each for each in told if each)
        lines.append(f"{name:<24}{entry['status']:<13}{entry.get('took', 0):>7.1f}  {found}")
    return "\n".join([*lines, f"written to {report.path}"])


def _ratios(results: dict[str, Any]) -> str:
    """Return how many times as fast the best of the kit's variants is in each case of a comparison."""
    best = [
        max(case["ratios"], key=lambda ratio: float(ratio["median"]))
        for case in results.get("cases", [])
        if case["ratios"]
    ]
    return ", ".join(f"{each['of']} over {each['over']} {each['median']:.2f} x" for each in best)


if __name__ == "__main__":
    sys.exit(main())
