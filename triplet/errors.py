"""The errors that end a stage without its result, and the recognition of a full GPU."""


class KitError(Exception):
    """An error for the user: what was found, what was expected, what to run. Shown as one line, exit code
    2."""


class Interrupted(Exception):
    """The stage was asked to stop and saved its work; it resumes when run again."""

    code = 143
    """Exit code: 128 and the signal's number, SIGTERM's unless another is known."""


class WorkerKilled(Interrupted):
    """The stage stopped and saved because a loader process was killed."""

    code = 2


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means that a GPU is full, in the words of torch, CUDA or its libraries."""
    told = (
        "out of memory",
        "cudaErrorMemoryAllocation",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    )
    return any(words in str(error) for words in told)


def message_of(error: object, most: int = 160) -> str:
    """Return an error's message in one line of at most so many characters; Python's own message on long
    numbers is advice for programmers."""
    text = "a number of more than 4300 digits" if "int_max_str_digits" in str(error) else str(error)
    return " ".join(text.split())[:most]
