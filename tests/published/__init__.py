"""Tests of triplet.published."""
