"""Read a plain backbone from checkpoints of many formats."""

from triplet.weights.read import Backbone, read_backbone

__all__ = ["Backbone", "read_backbone"]
