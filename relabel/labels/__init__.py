"""The labels that every verb returns, their file and their evaluation."""
