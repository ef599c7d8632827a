"""Where the files of the UEA archive of time series come from.

The archive publishes no checksums, and its files have changed without notice (CharacterTrajectories
in November 2023). Those known here were taken from files that were looked at; any other download
has to be allowed by hand, and its SHA-256 goes into ``SHA256SUMS`` and into the run record.
"""

from __future__ import annotations

from experiments.data.checksum import Checksum
from experiments.data.sources import Remote, Source

MIRRORS = (
    "https://timeseriesclassification.com/aeon-toolkit/{name}.zip",
    "https://github.com/sktime/sktime-datasets/raw/main/TSC/{name}.zip",
)
"""Where sktime downloads from, too."""

CHECKSUMS = {
    "ArticularyWordRecognition_TRAIN.ts": Checksum("md5", "1e1ac46ddbdec567de40601957b2a8a8"),
    "ArticularyWordRecognition_TEST.ts": Checksum("md5", "0a559bc59ec12ed786d4096ff6f17701"),
}
"""Known checksums of files of the archive."""

UNPACKED = {
    "ArticularyWordRecognition": 6_000_000,
    "CharacterTrajectories": 10_000_000,
    "SpokenArabicDigits": 50_000_000,
}
"""Bytes of both files together, about."""


def source(uea_name: str) -> Source:
    """Where a problem's files come from.

    Args:
        uea_name: Name in the archive.
    """
    files = (f"{uea_name}_TRAIN.ts", f"{uea_name}_TEST.ts")
    urls = tuple(mirror.format(name=uea_name) for mirror in MIRRORS)
    return Source(
        name=uea_name,
        folders=(f"uea/{uea_name}", uea_name),
        files=files,
        remotes=(Remote(f"{uea_name}.zip", urls),),
        members=files,
        checksums={file: CHECKSUMS[file] for file in files if file in CHECKSUMS},
        unpacked=UNPACKED.get(uea_name, 0),
    )
