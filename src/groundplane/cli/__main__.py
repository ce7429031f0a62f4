"""`python -m groundplane.cli`: the same as `ground`."""

from groundplane.cli import main

main()
