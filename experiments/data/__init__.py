"""Data sets: every loader is ``load(*, data_dir, name, **options) -> Splits``, and deterministic.

=========  ===============================================================================
module     data
=========  ===============================================================================
digits     scikit-learn's 8 x 8 digits, part of the package, no network
mnist      MNIST through torchvision, from its original files
cifar10    CIFAR-10 through torchvision
uea        any data set of the UEA archive of time series; two of them need no network
circle     two noisy rings in the plane, generated
=========  ===============================================================================

The layout of the tensors is written once, in :mod:`experiments.data.splits`. A loader's result does
not depend on the seed of the run, only on its own ``split_seed``.
"""
