"""Whether an advisory names one of the pinned versions: `advisories.py PIP-AUDIT [--if-reachable]`.

Runs pip-audit, the program at PIP-AUDIT, over constraints.txt. It calls versions that it could not look up
clean; here a version is clean when its advisories were read. Exits with 1 for a version with an advisory, for
versions that were not looked up, and where pip-audit fails. Without a network, and so without a list of
advisories or even without a pip-audit, `--if-reachable` lets it pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
UNREACHED = ("Could not connect", "ConnectionError", "ConnectTimeout", "ReadTimeout")


def judged(report: dict[str, Any], *, if_reachable: bool) -> tuple[bool, str]:
    """Whether the versions pass, and why, from pip-audit's report."""
    entries = report["dependencies"]
    skipped = [entry["name"] for entry in entries if "skip_reason" in entry]
    known = [
        f"{entry['name']} {entry['version']}: {flaw['id']}"
        for entry in entries
        for flaw in entry.get("vulns", ())
    ]
    if known:
        return False, "these versions have advisories:\n  " + "\n  ".join(known)
    if len(skipped) == len(entries):
        return if_reachable, "their list was not reached: nothing is known of the versions"
    if skipped:
        return False, f"{len(skipped)} of {len(entries)} versions were not looked up: {', '.join(skipped)}"
    return True, f"none is known of {len(entries)} versions"


def looked_up(program: Path, *, if_reachable: bool) -> tuple[bool, str]:
    """Whether the versions of constraints.txt pass, and why."""
    if not program.is_file():
        return if_reachable, "pip-audit could not be installed: nothing is known of the versions"
    command = [program, "--requirement", PINS, *OPTIONS]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        report = json.loads(ended.stdout)
    except ValueError:
        if any(words in ended.stderr for words in UNREACHED):
            return if_reachable, "their list was not reached: nothing is known of the versions"
        lines = ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"]
        why = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        return False, f"pip-audit failed: {why}"
    return judged(report, if_reachable=if_reachable)


def main(arguments: Sequence[str]) -> int:
    """Print the sentence; 1 where the versions do not pass."""
    passes, text = looked_up(Path(arguments[0]), if_reachable="--if-reachable" in arguments[1:])
    print(f"advisories: {text}")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
