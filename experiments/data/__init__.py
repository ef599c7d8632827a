"""Data sets: every loader is ``load(*, data_dir, name, **options) -> Splits``, and deterministic.

A loader's result does not depend on the seed of the run, only on ``split_seed``. One module is one
data set, or one archive of them: ``digits``, ``mnist``, ``svhn``, ``cifar10``, ``uea`` (with the
originals of ``uci``), ``maf`` (MINIBOONE, GAS, POWER, HEPMASS), ``densities`` (Circle and others in
the plane).

They share the layout and the check of the tensors (``splits``), what image sets, time series and
tables have in common (``images``, ``series``, ``tabular``), how files get into the data folder and
are checked (``files``, ``sources``), and tensors kept from one run to the next (``cache``). Images
are not kept: as tensors they are four times the size of their files, which are read as fast. What
``scripts/data.py`` can download is listed in ``catalogue``.
"""
