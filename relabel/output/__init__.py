"""What a user gets back: calibrated labels in one Parquet file."""
