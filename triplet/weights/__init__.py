"""Checkpoint formats in, a plain backbone out."""

from triplet.weights.read import Backbone, read_backbone

__all__ = ["Backbone", "read_backbone"]
