"""The two ways in which a stage ends without its result, and what a full GPU says."""


class KitError(Exception):
    """What was found, what was expected, what to run: shown as one line, exit code 2."""


class Interrupted(Exception):
    """The stage was asked to stop, saved what it had, and goes on when run again."""

    code = 143


class WorkerKilled(Interrupted):
    """The same, because a process that loads data was killed."""

    code = 2


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that a GPU is full, in torch's words or in those of CUDA and its libraries."""
    told = (
        "out of memory",
        "cudaErrorMemoryAllocation",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    )
    return any(words in str(error) for words in told)
