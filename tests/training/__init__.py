"""Tests of triplet.training."""
