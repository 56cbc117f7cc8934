"""What pip-audit found of the pinned versions, in words: `advisories.py REPORT.json [--if-reachable]`.

pip-audit calls versions that it could not look up "clean"; here a version counts as clean when its advisories
were read. Exits with 1 for a version with an advisory, and for versions that were not looked up, unless none
could be and `--if-reachable` says that this is the network's business. Without a network there may be no
report at all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
        return False, f"{len(known)} advisories:\n  " + "\n  ".join(known)
    if not entries or len(skipped) == len(entries):
        return (
            if_reachable,
            "the list of advisories was not reached: nothing is known of the versions",
        )
    if skipped:
        return False, f"{len(skipped)} of {len(entries)} versions were not looked up: {', '.join(skipped)}"
    return True, f"no advisory is known of {len(entries)} versions"


def main(arguments: Sequence[str]) -> int:
    """Print the sentence; 1 where the versions do not pass."""
    path = Path(arguments[0])
    report = json.loads(path.read_text("utf-8")) if path.is_file() else {"dependencies": []}
    passes, text = judged(report, if_reachable="--if-reachable" in arguments[1:])
    print(f"advisories: {text}")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
