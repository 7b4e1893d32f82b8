"""The estimate of p(given | true)."""
