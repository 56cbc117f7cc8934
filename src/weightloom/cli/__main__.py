"""``python -m weightloom.cli``."""

from weightloom.cli.main import main

main()
