"""From what training saw to probabilities one can act on: numpy only."""
