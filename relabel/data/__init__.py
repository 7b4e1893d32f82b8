"""What a user hands in: rows, verified labels and pixels."""
