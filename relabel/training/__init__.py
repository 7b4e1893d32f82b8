"""Training of the backbone together with a corrector."""
