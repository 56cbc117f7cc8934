"""Where the command line begins: the console script, and ``python -m weightloom.cli``.

Interrupts are watched for before anything else is imported; until then, while the interpreter itself starts,
they are Python's.
"""

from __future__ import annotations

import sys

from weightloom.cli import interrupts


def main() -> None:
    """Run the command line and leave the process; the entry point of the package."""
    try:
        interrupts.watch()
        from weightloom.cli.main import app

        app(prog_name="weightloom")
    except KeyboardInterrupt:  # where nothing watches: on Windows, or in the instant before it begins
        if interrupts.debugging():
            raise
        interrupts.say()
        sys.exit(1)
    finally:
        interrupts.leave()


if __name__ == "__main__":
    main()
