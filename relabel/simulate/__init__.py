"""Synthetic label noise and the data set of the demo."""
