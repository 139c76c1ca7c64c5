"""A part that the package imports where it is used."""

from openselfsup.third_party import clustering

NAME = clustering.NAME
