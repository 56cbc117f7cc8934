"""``python -m weightloom``."""

from weightloom.cli.main import main

main()
