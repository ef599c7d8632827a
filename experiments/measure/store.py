"""Result files: one JSON a benchmark, written whole after every workload."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError
from experiments.base.files import write_whole

SCHEMA = 1

_ORIGIN_KEYS = ("device", "processor", "threads", "versions", "git", "date", "repeats")


def path_of(folder: Path, benchmark: str) -> Path:
    """Return the file of a benchmark."""
    return folder / f"{benchmark}.json"


def load(folder: Path, benchmark: str) -> dict[str, Any]:
    """Return the results so far; an empty table where there is no file yet.

    Raises:
        RecordError: the file is damaged or of another benchmark or version.
    """
    path = path_of(folder, benchmark)
    if not path.is_file():
        return {"benchmark": benchmark, "schema": SCHEMA, "origin": None, "workloads": {}}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is damaged ({error}): remove it") from error
    check(results, benchmark, path)
    found: dict[str, Any] = results
    return found


def check(results: Any, benchmark: str, path: Path) -> None:
    """Raise RecordError unless ``results`` has the layout of ``benchmark``."""
    if not isinstance(results, dict) or results.get("benchmark") != benchmark:
        raise RecordError(f"{path} does not hold the results of benchmark {benchmark!r}")
    if results.get("schema") != SCHEMA:
        raise RecordError(
            f"{path} has layout {results.get('schema')}, this version writes {SCHEMA}: remove it"
        )
    workloads = results.get("workloads")
    if not isinstance(workloads, dict):
        raise RecordError(f"{path} has no table of workloads")
    for name, entry in workloads.items():
        missing = [key for key in _ORIGIN_KEYS if key not in entry.get("origin", {})]
        if missing:
            raise RecordError(f"{path}: workload {name!r} does not say its {', '.join(missing)}")


def save(folder: Path, benchmark: str, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Put one workload's entry into the file, leave the others as they are, return all.

    The table's own origin is that of its newest entry.

    Raises:
        RecordError: the file cannot be written, or the present one is damaged.
    """
    results = load(folder, benchmark)
    results["origin"] = entry["origin"]
    results["workloads"][name] = dict(entry)
    check(results, benchmark, path_of(folder, benchmark))
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path_of(folder, benchmark), text)
    return results


def write_provenance(folder: Path, benchmarks: Sequence[str]) -> Path:
    """Write where every number in the folder comes from, workload by workload; return the file.

    Raises:
        RecordError: a result file is damaged, or the file cannot be written.
    """
    tables = {name: load(folder, name)["workloads"] for name in benchmarks}
    origins = {
        name: {workload: entry["origin"] for workload, entry in entries.items()}
        for name, entries in tables.items()
        if entries
    }
    content = {"command": "make benchmark", "origins": origins}
    path = folder / "provenance.json"
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
