"""The results of a study of ``dsonas compare`` as one file, from which it can be continued.

A study's folder is large: every job is a run with its checkpoints. What cannot be computed again
from the rest is small: settings, architectures, and the result of each job that is done.

    python benchmarks/study_archive.py pack runs/compare-fashion-mnist study.json
    python benchmarks/study_archive.py unpack study.json runs/compare-fashion-mnist
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from dsonas._utils import write_atomically

KEPT = ("config.yaml", "study.json", "user_code.json", "architectures/*.json")


def kept_files(study: Path) -> Iterator[Path]:
    """The files that a study goes on from; of jobs, only those that are done."""
    for pattern in KEPT:
        yield from sorted(study.glob(pattern))
    for result in sorted(study.glob("jobs/*/result.json")):
        yield result
        yield result.with_name("attempts.json")


def pack(study: Path, archive: Path) -> int:
    """Write the files of a study into one; the number of jobs that are done."""
    texts = {str(path.relative_to(study)): path.read_text() for path in kept_files(study)}
    write_atomically(archive, (json.dumps(texts, indent=0) + "\n").encode())
    return sum(name.endswith("result.json") for name in texts)


def unpack(archive: Path, study: Path) -> int:
    """Write what is missing in a study's folder; the number of files written."""
    missing = {
        study / name: text
        for name, text in json.loads(archive.read_text()).items()
        if not (study / name).exists()
    }
    for path, text in missing.items():
        write_atomically(path, text.encode())
    return len(missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    if options.action == "pack":
        print(f"{pack(options.source, options.target)} jobs in {options.target}")
    else:
        print(f"{unpack(options.source, options.target)} files written into {options.target}")


if __name__ == "__main__":
    main()
