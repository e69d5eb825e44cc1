"""``python -m bevquant``: the command line."""

from bevquant.cli import main

main()
