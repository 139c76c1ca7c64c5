"""A stage on GPUs that a made-up libnvidia-ml knows; prints the energy that is recorded.

``metered_stage.py LIBRARY FOLDER SESSION...``, each as ``NAME:GPUS:END``: the stage below the folder, the
GPU of each process by commas, and how the session ends: ``done``, ``stop`` or ``error``.
"""

import contextlib
import ctypes
import sys
from pathlib import Path

from triplet import energy, records
from triplet.errors import Interrupted, KitError
from triplet.training.distributed import join, perform


def main(library: str, folder: str, *sessions: str) -> None:
    ctypes.CDLL(library)  # from now on it is what its soname says, for pynvml too
    for session in sessions:
        name, gpus, end = session.split(":")
        with contextlib.suppress(Interrupted, KitError), join() as processes:
            gpu = gpus.split(",")[processes.rank]
            energy.own_gpu = lambda gpu=gpu: gpu or None

            def work(job, end=end):
                if end == "stop":
                    raise Interrupted("stopped")
                if end == "error":
                    raise KitError("failed")

            perform(processes, "copy", Path(folder, name), work, config={}, inputs={})
            if processes.is_main_process:
                print(name, records.read(Path(folder, name)).energy_kwh)


if __name__ == "__main__":
    main(*sys.argv[1:])
