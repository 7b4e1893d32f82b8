"""A label corrector that is taught on many data sets with known truth, and used where nothing is verified."""
