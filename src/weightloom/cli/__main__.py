"""Where the command line begins: the console script, and ``python -m weightloom.cli``.

Interrupts are watched for before anything else is imported; until then, while the interpreter itself starts,
they are Python's.
"""

from __future__ import annotations

import os
import sys

from weightloom.cli import interrupts


def main() -> None:
    """Run the command line and leave the process; the entry point of the package."""
    try:
        interrupts.watch()
        keep_compiled()
        from weightloom.cli.main import app

        app(prog_name="weightloom")
    except KeyboardInterrupt:  # where nothing watches: on Windows, or in the instant before it begins
        if interrupts.debugging():
            raise
        interrupts.say()
        sys.exit(1)
    finally:
        interrupts.leave()


def keep_compiled() -> None:
    """Name the place where torch keeps what it compiles, unless it is named: the cache, if it can be written.

    Torch makes it as soon as it is imported, otherwise in the temporary folder, where it would stay.
    """
    cache = os.environ.get("WEIGHTLOOM_CACHE") or os.path.join("~", ".cache", "weightloom")
    folder = os.path.join(os.path.abspath(os.path.expanduser(cache)), "torch")
    place = folder
    while not os.path.isdir(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    if os.access(place, os.W_OK | os.X_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)


if __name__ == "__main__":
    main()
