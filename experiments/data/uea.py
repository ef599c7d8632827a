"""Time series of the UEA archive: any classification problem of it, by name.

``<Name>_TRAIN.ts`` and ``<Name>_TEST.ts`` are looked for in the data folder, then among the files
that the sktime package carries (JapaneseVowels and BasicMotions), then the UCI originals where they
can be read (:mod:`experiments.data.uci`). Where nothing is found, the ``.ts`` files are downloaded.

The archive publishes no checksums, and its files have changed without notice (CharacterTrajectories
in November 2023). The checksums here were taken from files that were looked at; any other download
has to be allowed by hand.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.base.errors import ConfigError, DataError
from experiments.data import uci
from experiments.data.cache import cached
from experiments.data.files import Remote, digest, read_text
from experiments.data.series import Series, numbers, split_series
from experiments.data.sources import Source
from experiments.data.splits import FloatArray, Splits

FORMS = ("auto", "uea", "uci")

MIRRORS = (  # sktime downloads from them, too
    "https://timeseriesclassification.com/aeon-toolkit/{name}.zip",
    "https://github.com/sktime/sktime-datasets/raw/main/TSC/{name}.zip",
)

CHECKSUMS = {
    "ArticularyWordRecognition_TRAIN.ts": "md5:1e1ac46ddbdec567de40601957b2a8a8",
    "ArticularyWordRecognition_TEST.ts": "md5:0a559bc59ec12ed786d4096ff6f17701",
}

UNPACKED = {  # approximate bytes of both files
    "ArticularyWordRecognition": 6_000_000,
    "CharacterTrajectories": 10_000_000,
    "SpokenArabicDigits": 50_000_000,
}

REQUIRED_TAGS = ("@problemname", "@timestamps", "@univariate", "@classlabel", "@data")


def load(
    *,
    uea_name: str,
    data_dir: str | Path | None = None,
    name: str | None = None,
    form: str = "auto",
    trim_zeros: bool = False,
    unequal_lengths: bool | None = None,
    split_seed: int = 0,
    download: bool = True,
    allow_unverified: bool = False,
) -> Splits:
    """Load a classification problem.

    The published training and test files are pooled and split 70/15/15, stratified, as in the
    paper. Each channel is standardised by the training split's observed values. Missing values
    become mask 0 and value 0; missing steps at a series' end are padding. The result is cached.

    Args:
        uea_name: Name in the archive, for example ``ArticularyWordRecognition``.
        data_dir: Folder with the files; also where a download goes. None: only what sktime carries.
        name: Name in records; None: ``uea_name``.
        form: ``uea`` (``.ts`` files), ``uci`` (the originals), or ``auto`` (whichever is there).
        trim_zeros: Whether steps of zeros at both ends of a series are cut.
        unequal_lengths: Whether series may differ in length; None: as the file's header says.
        split_seed: Decides which series goes into which split.
        download: Whether missing files may be downloaded.
        allow_unverified: Whether a download without a known checksum is accepted.

    Raises:
        ConfigError: ``uea_name`` cannot be a name in the archive, or an option is out of range.
        DataError: Files are missing, damaged or malformed, or hold values that cannot be used.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", uea_name):
        raise ConfigError(f"uea_name is '{uea_name}', which is no name of a UEA data set")
    if form not in FORMS:
        raise ConfigError(f"{uea_name}: form is '{form}', but has to be one of {', '.join(FORMS)}")
    if form == "uci" and uea_name not in uci.READERS:
        raise ConfigError(
            f"{uea_name}: form=uci is known for {', '.join(uci.READERS)} only; leave it out"
        )
    name = name or uea_name
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    form, files, folder = _locate(uea_name, data_dir, form, download, allow_unverified)
    files.verify(folder)
    checksums = [f"{file} sha256 {digest(folder / file)}" for file in files.files]
    origin = f"{'UCI original' if form == 'uci' else 'UEA archive'}, {', '.join(checksums)}"

    def build() -> Splits:
        if form == "uci":
            pooled = uci.READERS[uea_name](folder)
        else:
            pooled = _read_both([folder / file for file in files.files], unequal_lengths)
        return split_series(pooled, name, origin, split_seed=split_seed, zeros=trim_zeros)

    key = {
        "files": checksums,
        "trim_zeros": trim_zeros,
        "unequal_lengths": unequal_lengths,
        "split_seed": split_seed,
    }
    return cached(name, key, build)


def sources(*, uea_name: str, **_: Any) -> dict[str, Source]:
    """Return where the files of a problem come from, see :mod:`experiments.data.catalogue`."""
    files = (f"{uea_name}_TRAIN.ts", f"{uea_name}_TEST.ts")
    urls = tuple(mirror.format(name=uea_name) for mirror in MIRRORS)
    archive = Source(
        name=uea_name,
        folders=(f"uea/{uea_name}", uea_name),
        files=files,
        remotes=(Remote(f"{uea_name}.zip", urls),),
        members=files,
        checksums={file: CHECKSUMS[file] for file in files if file in CHECKSUMS},
        unpacked=UNPACKED.get(uea_name, 0),
    )
    if uea_name in uci.READERS:
        return {"uea": archive, "uci": uci.source(uea_name)}
    return {"uea": archive}


def _locate(
    uea_name: str, data_dir: Path | None, form: str, download: bool, allow_unverified: bool
) -> tuple[str, Source, Path]:
    """Find or download the files of a problem; return form, source and folder."""
    forms = sources(uea_name=uea_name)
    if form != "auto":
        forms = {form: forms[form]}
    roots = [bundled_folder()] if data_dir is None else [data_dir, bundled_folder()]
    for found, files in forms.items():
        for root in roots:
            if (folder := files.find(root)) is not None:
                return found, files, folder
            if found == "uea":
                _refuse_half(files, root)
    first, files = next(iter(forms.items()))
    if data_dir is None:
        raise DataError(
            f"{uea_name}: sktime does not carry it; set data_dir to the folder that has "
            f"{' and '.join(files.files)}"
        )
    try:
        folder = files.locate(data_dir, download=download, allow_unverified=allow_unverified)
    except DataError as error:
        if len(forms) == 1:
            raise
        hint = forms["uci"].by_hand(data_dir)
        raise DataError(f"{error}; the UCI original will do as well: {hint}") from error
    return first, files, folder


def _refuse_half(files: Source, root: Path) -> None:
    for folder in (root / relative for relative in files.folders):
        absent = [file for file in files.files if not (folder / file).is_file()]
        if len(absent) == 1:
            raise DataError(f"{folder / absent[0]}: no such file, but its partner exists")


def bundled_folder() -> Path:
    """Return the folder with the data that the installed sktime carries."""
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        raise DataError("sktime is not installed: pip install -e '.[experiments]'")
    return Path(spec.origin).parent / "datasets" / "data"


def _read_both(paths: list[Path], unequal_lengths: bool | None) -> Series:
    """Read and pool both ``.ts`` files of a problem."""
    first, second = (read_ts(path, unequal_lengths=unequal_lengths) for path in paths)
    if first.classes != second.classes or len(first.values[0]) != len(second.values[0]):
        raise DataError(f"{paths[0]} and {paths[1].name} differ in their classes or channels")
    labels = np.concatenate([first.labels, second.labels])
    return Series(first.values + second.values, labels, first.classes)


def read_ts(path: Path, *, unequal_lengths: bool | None = None) -> Series:
    """Read a ``.ts`` file; the classes are in lower case, since the format ignores case.

    The header says whether series may differ in length (``@equalLength``, ``@seriesLength``). It is
    wrong in some published files; ``unequal_lengths`` overrules it.

    Raises:
        DataError: The file is missing, empty, truncated or malformed, is not a classification
            problem, or holds what its header or float32 excludes. The message has file and line.
    """
    text = read_text(path).rstrip().lower()
    if not text:
        raise DataError(f"{path}: the file is empty")
    tags: dict[str, list[str]] = {}
    rows: list[tuple[int, str]] = []
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if line and "@data" in tags:
            rows.append((number, line))
        elif line.startswith("@"):
            tag, *given = line.split()
            tags[tag] = given
    classes, channels = _check_header(path, tags)
    if not rows:
        raise DataError(f"{path}: the file has a header but no data")
    gaps = _tag(tags, "@missing", "true") != "false"
    if unequal_lengths is None:
        unequal_lengths = _tag(tags, "@equallength", "false") != "true"
    announced = _tag(tags, "@serieslength", "")
    length = int(announced) if announced.isdecimal() else 0
    series: list[FloatArray] = []
    labels: list[int] = []
    for n, (number, line) in enumerate(rows, start=1):
        where = f"{path}, line {number} (series {n})"
        *texts, label = line.split(":")
        channels = channels or len(texts)
        if len(texts) != channels:
            last = " (the last line: is the file truncated?)" if number == rows[-1][0] else ""
            raise DataError(
                f"{where}: {len(texts)} channels followed by a label, expected {channels}{last}"
            )
        if label.strip() not in classes:
            raise DataError(
                f"{where}: label '{label.strip()}' is not among the header's {len(classes)} "
                f"classes ({', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''})"
            )
        values = _values(where, texts)
        if not gaps and np.isnan(values).any():
            channel, step = np.argwhere(np.isnan(values))[0] + 1
            raise DataError(
                f"{where}: the value in channel {channel}, step {step} is missing, but the header "
                "says @missing false"
            )
        length = length or values.shape[1]
        if not unequal_lengths and values.shape[1] != length:
            raise DataError(
                f"{where}: a series of {values.shape[1]} steps, but all have to have {length}; "
                "truncated? (dataset.unequal_lengths=true accepts different lengths)"
            )
        series.append(values)
        labels.append(classes.index(label.strip()))
    return Series(tuple(series), np.asarray(labels, dtype=np.int64), classes)


def _values(where: str, texts: list[str]) -> FloatArray:
    """The numbers (channels, steps) of a row; a missing one is ``?``."""
    channels = []
    for channel, text in enumerate(texts, start=1):
        entries = text.replace("?", "nan").split(",") if text else []
        channels.append(numbers(f"{where}, channel {channel}", entries, "step", gaps=True))
    lengths = [len(values) for values in channels]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise DataError(f"{where}: the channels have different lengths or are empty: {lengths}")
    return np.asarray(channels, dtype=np.float64)


def _tag(tags: dict[str, list[str]], name: str, absent: str) -> str:
    """The first value of a tag."""
    return next(iter(tags.get(name, [])), absent)


def _check_header(path: Path, tags: dict[str, list[str]]) -> tuple[tuple[str, ...], int | None]:
    """Return the class names and, where the header has it, the number of channels."""
    if _tag(tags, "@targetlabel", "false") == "true":
        raise DataError(f"{path}: a regression problem (@targetLabel); classes are needed")
    missing = [tag for tag in REQUIRED_TAGS if tag not in tags]
    if missing:
        raise DataError(f"{path}: the header lacks {', '.join(missing)}: not a complete .ts file")
    if _tag(tags, "@timestamps", "") == "true":
        raise DataError(f"{path}: time stamps (@timeStamps true) are not supported")
    flag, *classes = tags["@classlabel"] or ["false"]
    if flag != "true" or len(classes) < 2 or len(set(classes)) != len(classes):
        raise DataError(
            f"{path}: @classLabel has to be true and to list at least two different classes, "
            f"but is '{' '.join(tags['@classlabel'])}'"
        )
    if "@dimensions" not in tags:
        return tuple(classes), 1 if _tag(tags, "@univariate", "") == "true" else None
    channels = _tag(tags, "@dimensions", "")
    if not channels.isdecimal() or int(channels) < 1:
        raise DataError(f"{path}: @dimensions is '{channels}', not a positive number")
    return tuple(classes), int(channels)
