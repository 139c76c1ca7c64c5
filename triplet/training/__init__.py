"""Modules that every training and evaluation of the kit shares."""
