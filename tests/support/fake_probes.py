"""Probes without torch: ``python -m tests.support.fake_probes NAME --output FILE ...`` is one of them.

``... drive FILE`` runs some of them as ``benchmarks.speed.probe`` does, and ``... only NAMES ARGUMENTS``
of the real ones those of these names.
"""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from benchmarks.speed import probe

MODULE = "tests.support.fake_probes"


def fake(*names: str, seconds: float = 5) -> tuple[probe.Probe, ...]:
    return tuple(probe.Probe(name, seconds, MODULE) for name in names)


def main(name: str, output: Path) -> int:
    threading.Thread(target=probe.end_with_parent, daemon=True).start()

    def tell(**values):
        output.write_text(json.dumps(values))

    tell(begun=True)
    if name == "hang":
        time.sleep(600)
    elif name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "fail":
        print("warming up\nthe last words")
        return 3
    elif name == "senseless":
        tell(reason="no such thing here", senseless=True)
    else:
        time.sleep(0.02)
        tell(
            begun=True,
            summary=f"{name} measured",
            allocator=os.environ.get("PYTORCH_ALLOC_CONF"),
            brought=importlib.util.find_spec("brought_along") is not None,
        )
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "only":
        probe.PROBES = tuple(each for each in probe.PROBES if each.name in sys.argv[2].split(","))
        sys.exit(probe.main(sys.argv[3:]))
    if sys.argv[1] == "drive":
        probe.PROBES_MODULE = MODULE
        probe.PROBES = fake("one", "two", "hang")
        sys.exit(probe.main(["--output", sys.argv[2], "--seconds", "60"]))
    sys.exit(main(sys.argv[1], Path(sys.argv[sys.argv.index("--output") + 1])))
