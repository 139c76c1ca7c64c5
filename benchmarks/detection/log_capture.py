"""Write Detectron2's log to a file instead of the screen."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

LOGGERS = ("detectron2", "fvcore", "benchmarks", "py.warnings")


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append the output of Detectron2, fvcore, pycocotools and warnings to a file."""
    with (
        path.open("a", encoding="utf-8", errors="backslashreplace") as file,  # names of files are bytes
        contextlib.redirect_stdout(file),
        warnings.catch_warnings(),
    ):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        logging.captureWarnings(True)
        loggers = [logging.getLogger(name) for name in LOGGERS]
        before = [(logger.level, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
                logger.propagate = propagate
