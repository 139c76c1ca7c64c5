"""The former place of ``triplet.training.optim.LARS``, which others import from here."""

from triplet.training.optim import LARS

__all__ = ["LARS"]
