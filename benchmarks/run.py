"""One runner for tables. A table is a folder: config, measurements, JSON; the page is made from it.

    python benchmarks/run.py words                  # what is missing in results.json, then the page
    python benchmarks/run.py words --only subsets   # one part again
    python benchmarks/run.py words --page           # only the page, from the JSON

``benchmarks/TABLE/config.yaml`` says how much is measured, ``measure.py`` has a function a part in ``PARTS``
(from the config to plain data) and ``page(results, config)``, which gives the page as Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=sorted(p.parent.name for p in ROOT.glob("*/measure.py")))
    parser.add_argument("--only", action="append", default=[], metavar="PART")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    folder = ROOT / asked.table
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    table = importlib.import_module(f"{asked.table}.measure")
    file = folder / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, measure in table.PARTS.items():
        if (
            asked.page
            or (name in results and name not in asked.only)
            or (asked.only and name not in asked.only)
        ):
            continue
        started = time.process_time()
        found = measure(config)
        # Two processes may measure two parts: each writes its own.
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        results[name] = {"rows": found, "cpu_seconds": round(time.process_time() - started)}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {results[name]['cpu_seconds']} CPU-seconds", flush=True)
    page = ROOT.parent / "docs" / "results" / f"{asked.table}.md"
    page.write_text(table.page(results, config), encoding="utf-8")


if __name__ == "__main__":
    main()
