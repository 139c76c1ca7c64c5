"""Former place of ``triplet.training.optim.LARS``, kept for code that imports it from here."""

from triplet.training.optim import LARS

__all__ = ["LARS"]
