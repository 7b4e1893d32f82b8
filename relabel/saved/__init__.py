"""Corrector files and model files."""
