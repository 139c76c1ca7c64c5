"""The former place of the Triplet method's loss, which others import from here."""

from triplet.pretrain.methods.triplet import distances, truncated_triplet_loss

__all__ = ["distances", "truncated_triplet_loss"]
