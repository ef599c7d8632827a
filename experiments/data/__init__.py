"""Data sets: every loader is ``load(*, data_dir, name, **options) -> Splits``, and deterministic.

=========  ===============================================================================
module     data
=========  ===============================================================================
digits     scikit-learn's 8 x 8 digits, part of the package, no network
mnist      MNIST through torchvision, from its original files
svhn       SVHN, from its two ``.mat`` files
cifar10    CIFAR-10, from its python version (through torchvision) or its binary version
uea        any data set of the UEA archive of time series; two of them need no network, two
           more can be read in the form of the UCI originals
tabular    MINIBOONE, GAS, POWER and HEPMASS with the preprocessing of the MAF paper
circle     two noisy rings in the plane and other densities, generated
=========  ===============================================================================

The layout of the tensors is written once, in :mod:`experiments.data.splits`. A loader's result does
not depend on the seed of the run, only on its own ``split_seed``. What comes from text or needs
preprocessing is kept as tensors (:mod:`experiments.data.cache`); images are not, because as tensors
they are four times the size of their files, which are read as fast. How files get into the data
folder is in :mod:`experiments.data.sources`, which ones there are in
:mod:`experiments.data.catalogue`.
"""
