"""``triplet explain``: the causes of a result that falls short, the likeliest first, and what to do."""

from benchmarks.detection.explain.command import ExplainOptions, explain
from benchmarks.detection.explain.reading import read

__all__ = ["ExplainOptions", "explain", "read"]
