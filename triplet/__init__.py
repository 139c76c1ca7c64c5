"""The Triplet reproduction kit: the method and the stages from pulled data to a report."""

__version__ = "0.2.0"
