"""Former place of ``triplet.training.schedule``, kept for code that imports it from here."""

from triplet.training.schedule import ema_momentum, learning_rate

__all__ = ["ema_momentum", "learning_rate"]
