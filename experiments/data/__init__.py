"""Data sets: every loader is ``load(*, data_dir, name, **options) -> Splits``, and deterministic.

=========  ===============================================================================
module     data
=========  ===============================================================================
digits     scikit-learn's 8 x 8 digits, part of the package, no network
mnist      MNIST, from its four original files
svhn       SVHN, from its two ``.mat`` files
cifar10    CIFAR-10, from its python version or its binary version
uea        any data set of the UEA archive of time series; two of them need no network
uci        two of these in the form of the UCI originals, read by ``uea.load``
maf        MINIBOONE, GAS, POWER and HEPMASS with the preprocessing of the MAF paper
densities  two noisy rings in the plane (Circle) and other densities, generated
=========  ===============================================================================

They share the layout and the check of the tensors (``splits``), what image sets, time series and
tables have in common (``images``, ``series``, ``tabular``), how files get into the data folder and
are checked (``files``, ``sources``), and tensors kept from one run to the next (``cache``). Images
are not kept: as tensors they are four times the size of their files, which are read as fast. What
``scripts/data.py`` can download is listed in ``catalogue``.

A loader's result does not depend on the seed of the run, only on ``split_seed``.
"""
