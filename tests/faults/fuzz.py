"""Not a test: readers under a fuzzer led by coverage, `python tests/faults/fuzz.py [READER] [--runs N]`.

Atheris (libFuzzer) changes each good file of readers.py so that it reaches lines of this package that no file
before it reached. Every input has to be read, or refused by an error of this package, within a second of the
processor's time. Without READER all are run, one process each; the inputs that fail are kept in build/fuzz.
Needs `pip install 'weightloom[fuzz]'`, which is for Linux.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "build" / "fuzz"
sys.path.insert(0, str(ROOT))


def fuzz(name: str, runs: int, seed: int, root: Path) -> None:
    """Run one reader in this process, which ends with it, on files in ``root``."""
    import atheris

    with atheris.instrument_imports(include=["weightloom"]):
        from tests.faults.readers import good_readers

        from weightloom.errors import WeightloomError

    reader = good_readers(root / "good")[name]
    good = reader.file.read_bytes()
    runs = int(runs * min(1.0, reader.share / 0.02))  # readers that take long get fewer
    corpus, kept = root / "corpus", root / "kept"
    corpus.mkdir()
    (corpus / "good").write_bytes(good)
    if reader.folder is not None:
        shutil.copytree(reader.folder, kept)

    def one(data: bytes) -> None:
        if reader.folder is not None:
            shutil.rmtree(reader.folder)
            shutil.copytree(kept, reader.folder)
        reader.file.unlink(missing_ok=True)
        reader.file.write_bytes(data)
        if seconds() > 1.0 and seconds() > 1.0:  # once in a while a collection of Python's own takes long
            raise TimeoutError("it hangs")

    def seconds() -> float:
        start = time.process_time()
        try:
            reader.read(reader.file)
        except WeightloomError as error:
            if len(str(error)) > 2000:
                raise RuntimeError("a message without end") from error
        return time.process_time() - start

    FOUND.mkdir(parents=True, exist_ok=True)
    place = FOUND / re.sub(r"\W+", "-", name)
    sizes = [f"-runs={runs}", f"-seed={seed}", f"-max_len={2 * len(good) + 64}", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *sizes, f"-artifact_prefix={place}-", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reader", nargs="?", help="such as safetensors; all by default")
    parser.add_argument("--runs", type=int, default=20_000, help="inputs of a quick reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        fuzz(options.reader, options.runs, options.seed, options.inside)
        return
    from tests.faults.readers import READERS

    failed = []
    for name in READERS if options.reader is None else (options.reader,):
        command = [sys.executable, __file__, name, "--runs", str(options.runs), "--seed", str(options.seed)]
        with tempfile.TemporaryDirectory(prefix="weightloom-fuzz-") as folder:  # the fuzzer ends its process
            ended = subprocess.run([*command, "--inside", folder], capture_output=True, text=True)
        lines = re.findall(r"cov: (\d+)", ended.stderr)
        done = re.findall(r"Done (\d+) runs in (\d+) second", ended.stderr)
        if ended.returncode or not done:
            failed.append(name)
            print(ended.stderr[-3000:])
        of = f"{int(done[-1][0]):,} inputs in {done[-1][1]} s" if done else "stopped"
        reached = f"branches reached: {lines[0]} to {lines[-1]}" if lines else ""
        print(f"{name:20} {'FAILED' if name in failed else 'passed'}  {of}  {reached}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the inputs are in {FOUND}")


if __name__ == "__main__":
    main()
