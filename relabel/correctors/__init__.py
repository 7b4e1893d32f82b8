"""Label correctors: one paper, one file, one contract (`base.Corrector`)."""
