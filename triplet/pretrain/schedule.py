"""The former place of ``triplet.training.schedule``, which others import from here."""

from triplet.training.schedule import ema_momentum, learning_rate

__all__ = ["ema_momentum", "learning_rate"]
