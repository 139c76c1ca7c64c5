"""Measurements as JSON, as a table, and compared with the project's goals."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.speed.flops import peak
from benchmarks.speed.timing import Case, Timing, spread
from triplet import environment

PACKAGES = ("opencv-python-headless", "nvidia-dali-cuda130", "lightly", "solo-learn")
"""Packages whose versions matter here, besides those of every record."""


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def mfu(timing: Timing, device: torch.device) -> float | None:
    """Return the model FLOP utilisation; None on the CPU, for an unknown GPU, or if FLOP are not
    counted."""
    most = peak(device_name(device)) if device.type == "cuda" else None
    return timing.rate(timing.variant.flop) / most if most and timing.variant.flop else None


@dataclass(frozen=True)
class Goal:
    """A goal of the project."""

    text: str
    wanted: float
    found: Callable[[Case], tuple[str, float] | None]
    """Return the best of the kit's variants and its value; None if the goal is not about this case."""


def _ratio(benchmark: str, device: str, **sizes: Any) -> Callable[[Case], tuple[str, float] | None]:
    """Return a function for the best ratio over the released code in a case of these sizes."""

    def found(case: Case) -> tuple[str, float] | None:
        if (case.benchmark, case.device.type) != (benchmark, device):
            return None
        if any(case.sizes[key] != value for key, value in sizes.items()):
            return None
        return max(
            ((each["of"], each["median"]) for each in case.ratios() if each["over"] == "released"),
            key=lambda named: named[1],
            default=None,  # the released code failed
        )

    return found


def _best_mfu(case: Case) -> tuple[str, float] | None:
    name = device_name(case.device)
    if case.benchmark != "step" or not any(known in name for known in ("H100", "H200")):
        return None
    known = [(t.variant.name, mfu(t, case.device) or 0.0) for t in case.timings if t.variant.ours]
    best = max(known, key=lambda named: named[1], default=None)
    return best if best and best[1] else None


FULL = {"depth": 50, "width": 64}
GOALS = (
    Goal(
        "loss head 15 times the released code at n = 196 on the CPU", 15, _ratio("head", "cpu", images=196)
    ),
    Goal("data 2 times the released code on one core", 2, _ratio("data", "cpu", view=224)),
    Goal("step 5 times the released code on one GPU", 5, _ratio("step", "cuda", **FULL)),
    Goal("18 % model FLOP utilisation on an H100 or H200", 0.18, _best_mfu),
)


def judge(case: Case) -> list[dict[str, Any]]:
    """Return the goals for a case, and whether they were reached."""
    judged = []
    for goal in GOALS:
        if best := goal.found(case):
            name, value = best
            judged.append(
                {
                    "goal": goal.text,
                    "wanted": goal.wanted,
                    "found": value,
                    "by": name,
                    "reached": value >= goal.wanted,
                }
            )
    return judged


def as_json(case: Case) -> dict[str, Any]:
    """Return a case as plain values."""
    variants = {}
    for timing in case.timings:
        one = timing.variant
        values: dict[str, Any] = {
            "seconds": spread(timing.seconds),
            "repetitions": len(timing.seconds),
            "calls": timing.calls,
            "first_seconds": timing.first,
            "all_seconds": [round(seconds, 7) for seconds in timing.seconds],
        }
        if one.images:
            values["images_per_second"] = timing.rate(one.images)
        if one.flop:
            values["gflop_per_image"] = one.flop / one.images / 1e9
        if case.device.type == "cuda":
            values["mfu"] = mfu(timing, case.device)
            values["peak_memory_bytes"] = timing.peak
        variants[one.name] = values
    return {
        "benchmark": case.benchmark,
        "case": case.name,
        "device": device_name(case.device),
        "sizes": case.sizes,
        "variants": variants,
        "ratios": case.ratios(),
        "goals": judge(case),
        "notes": case.notes,
    }


def header(command: str, threads: int, *, smoke: bool) -> dict[str, Any]:
    """Return the context that a number needs."""
    versions = environment.versions()
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "smoke": smoke,
        "commit": environment.commit(),
        "threads": threads,
        "hardware": environment.hardware(),
        "versions": versions,
    }


def table(cases: list[dict[str, Any]], end_to_end: list[dict[str, Any]]) -> str:
    """Format all measurements for people. ``times as fast`` compares the kit's variant with the row's."""
    lines = []
    for case in cases:
        lines += ["", f"{case['benchmark']}: {case['case']} ({case['device']})"]
        for name, values in case["variants"].items():
            ms = {key: 1000 * value for key, value in values["seconds"].items()}
            line = f"  {name:<26}{ms['median']:>10.2f} ms  ({ms['low']:.2f} .. {ms['high']:.2f})"
            if rate := values.get("images_per_second"):
                line += f"  {rate:>8.1f} images/s"
            if share := values.get("mfu"):
                line += f"  MFU {share:.1%}"
            if most := values.get("peak_memory_bytes"):
                line += f"  {most / 2**30:.1f} GiB"
            lines.append(line)
        for each in case["ratios"]:
            lines.append(
                f"  {each['of']} over {each['over']}: {each['median']:.2f} x "
                f"({each['low']:.2f} .. {each['high']:.2f})"
            )
        for goal in case["goals"]:
            reached = "reached" if goal["reached"] else "NOT reached"
            lines.append(f"  goal: {goal['goal']}: {goal['found']:.3g} ({goal['by']}), {reached}")
        lines += [f"  note: {note}" for note in case["notes"]]
    for each in end_to_end:
        share = each["waiting_share"]
        lines += [
            "",
            f"loader and step: {each['step']}, views by {each['backend']}, {each['workers']} processes",
            f"  loader alone {each['loader_images_per_second']:.1f} images/s, with the step "
            f"{each['images_per_second']:.1f}; waiting for data {share['median']:.1%} of the time "
            f"({share['low']:.1%} .. {share['high']:.1%})",
        ]
    return "\n".join(lines[1:])
