"""``python -m triplet.launch``: torchrun that reports an error in one line.

For a failed process, torchrun alone would print a log line and a traceback of its own below the line in
which the process says what is wrong. Arguments are torchrun's.
"""

import logging
import os
import sys
from typing import Any

SAVING = 120
"""Seconds that stopped processes get to end their step and save; torchrun alone gives them 30. Slurm and
compose wait for 300."""


def main() -> int:
    """Run torchrun; return the exit code of the first process that failed, 0 if none did, 2 if they did not
    find each other."""
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun would choose the same, with a long message
        os.environ |= {"OMP_NUM_THREADS": "1", "TRIPLET_OWN_THREADS": "1"}  # see Processes.use_cores
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    # Torchrun's own, and the signal by which jobs in Apptainer are stopped.
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGURG")
    logging.disable(logging.ERROR)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    torchruns = PContext.close

    def close(self: PContext, death_sig: Any = None, timeout: int = 30) -> None:
        stopped = isinstance(sys.exc_info()[1], SignalException)  # else one of them has failed
        torchruns(self, death_sig, SAVING if stopped else timeout)

    PContext.close = close  # type: ignore[method-assign]
    try:
        run.main()
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except SignalException as stopped:
        return 128 + stopped.sigval
    except (ValueError, AssertionError) as error:
        reason = f" ({error})" if str(error) else ""
        print(
            f"triplet.launch: torchrun refuses its arguments{reason}; "
            "GPUS and NODES are whole numbers from 1 on",
            file=sys.stderr,
        )
        return 2
    except RendezvousError as error:
        print(
            f"triplet.launch: the nodes did not meet ({error}); start the same command on every node, with "
            "RDZV=host:port of one of them, a port that is open and free",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
