"""`python -m relabel`."""

from relabel.cli import main

main()
