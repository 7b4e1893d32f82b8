"""Repair image data sets whose labels are partly wrong, guided by a few hundred verified rows."""

__version__ = "0.1.0"
