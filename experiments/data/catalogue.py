"""The data sets of ``configs/dataset``: which of them are downloaded, and from where.

A module of this package whose data is downloaded has a function ``sources``. It takes the keys of a
configuration and returns the files of the data set, by the form in which they are published; the
first form is the usual one.
"""

from __future__ import annotations

from importlib import import_module

import yaml

from experiments.base.environment import REPOSITORY
from experiments.base.errors import DataError, suggestion
from experiments.data.sources import Source


def forms() -> dict[str, dict[str, Source]]:
    """Return all data sets by name, with the forms that can be downloaded."""
    found = {}
    for path in sorted((REPOSITORY / "configs" / "dataset").glob("*.yaml")):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "???" in options.values():  # any data set of an archive, still to be named
            continue
        module = import_module(options["_target_"].rpartition(".")[0])
        downloaded = hasattr(module, "sources") and options.get("data_dir") is not None
        found[path.stem] = module.sources(**options) if downloaded else {}
    return found


def sources() -> dict[str, Source]:
    """Return what can be downloaded: ``<name>``, and ``<name>_<form>`` for each further form."""
    found = {}
    for name, published in forms().items():
        for n, (form, source) in enumerate(published.items()):
            found[name if n == 0 else f"{name}_{form}"] = source
    return found


def chosen(name: str) -> dict[str, Source]:
    """Return what has to be downloaded for a data set, a further form of one, or ``all``.

    Raises:
        DataError: The name is unknown.
    """
    named, known = forms(), sources()
    if name == "all":
        return {each: known[each] for each, published in named.items() if published}
    if name in known:
        return {name: known[name]}
    if name in named:
        return {}
    valid = ("all", *known)
    embedded = ", ".join(each for each, published in named.items() if not published)
    raise DataError(
        f"unknown data set {name!r}{suggestion(name, [*valid, *named])}; "
        f"valid: {', '.join(valid)} ({embedded} need no download)"
    )
