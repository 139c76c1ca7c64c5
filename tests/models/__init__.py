"""Tests of triplet.models."""
