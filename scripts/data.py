"""Download data sets: python scripts/data.py DATASET|all --data-dir D [--dry-run].

What is there is checked and not downloaded again; a download that broke goes on where it was. Exit
status: 0 all there, 2 wrong input or a data set that could not be had, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from experiments.base.errors import DataError
from experiments.base.files import place
from experiments.base.say import keep_talking, resumable
from experiments.data import catalogue
from experiments.data.sources import Say, Source


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    keep_talking()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help=f"all, or one of {', '.join(catalogue.sources())}")
    parser.add_argument("--data-dir", type=place, default=Path("data"), help="default: data")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be downloaded, and where to"
    )
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="accept downloads for which no checksum is published; theirs are recorded",
    )
    asked = parser.parse_args(arguments)
    data_dir: Path = asked.data_dir
    console = Console(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False)

    def work() -> str:
        chosen = catalogue.chosen(asked.dataset)
        if not chosen:
            return f"{asked.dataset} needs no download"
        if asked.dry_run:
            return _announce(chosen, data_dir, say)
        failures = []
        for name, source in chosen.items():
            try:
                folder = _get(name, source, data_dir, asked.allow_unverified, console)
            except DataError as error:
                if len(chosen) == 1:
                    raise
                failures.append(name)
                say(f"{name}: error: {error}")
            else:
                say(f"{name}: {folder}")
        if failures:
            raise DataError(f"not there: {', '.join(failures)} (reasons above)")
        return f"{', '.join(chosen)}: ready; use them with data_dir={data_dir}"

    return resumable(work)


def _get(
    name: str, source: Source, data_dir: Path, allow_unverified: bool, console: Console
) -> Path:
    """Get one data set and check it, with a bar on a terminal and lines elsewhere."""
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(name, total=None)
        tenths = 0

        def progress(received: int, total: int | None) -> None:
            nonlocal tenths
            bar.update(task, completed=received, total=total)
            now = 10 * received // total if total else received // (100 << 20)
            if now > tenths and not shown:
                of = f" of {decimal(total)}" if total else ""
                console.print(f"{name}: {decimal(received)}{of}", markup=False)
            tenths = now

        folder = source.locate(
            data_dir,
            allow_unverified=allow_unverified,
            progress=progress,
            say=lambda line: console.print(f"{name}: {line}", markup=False),
        )
        source.verify(folder)
        return folder


def _announce(chosen: dict[str, Source], data_dir: Path, say: Say) -> str:
    """Say what each data set would take, without the network; return the sum."""
    sizes: dict[str, int | None] = {}  # an archive that several data sets share counts once
    unpacked = 0
    for name, source in chosen.items():
        folder = source.find(data_dir)
        if folder is not None:
            say(f"{name}: there, in {folder}")
            continue
        missing = source.missing(data_dir)
        known = [remote.size for remote in missing if remote.size is not None]
        if not missing:
            load = f"nothing to download ({source.remotes[0].name} is there)"
        elif len(known) < len(missing):
            load = "a download of unknown size"
        else:
            load = f"{decimal(sum(known))} to download"
            if source.archive_folder is not None:
                load += f" ({missing[0].name}, which holds several data sets)"
        if source.unpacked:
            load += f", about {decimal(source.unpacked)} unpacked"
        if not source.verified():
            load += ", no checksum is published: needs --allow-unverified"
        say(f"{name}: {load}, into {data_dir / source.folders[0]}")
        sizes |= {remote.urls[0]: remote.size for remote in missing}
        unpacked += source.unpacked
    more = " and what is of unknown size" if None in sizes.values() else ""
    total = unpacked + sum(size or 0 for size in sizes.values())
    place = next(p for p in (data_dir / "x").absolute().parents if p.exists())
    free = decimal(shutil.disk_usage(place).free)
    return f"in all about {decimal(total)}{more}, {free} free; nothing was downloaded (--dry-run)"


if __name__ == "__main__":
    sys.exit(main())
