"""What a user hands in: rows, trusted labels and pixels."""
