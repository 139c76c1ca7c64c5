"""Former place of the Triplet method's loss, kept for code that imports it from here."""

from triplet.pretrain.methods.triplet import distances, truncated_triplet_loss

__all__ = ["distances", "truncated_triplet_loss"]
