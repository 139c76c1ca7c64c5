"""Stands in for OpenSelfSup where no checkout is given."""
