"""Names of data sets and optimizers as a reader knows them."""

from __future__ import annotations

DATASETS = {
    "digits": "Digits",
    "japanese_vowels": "JapaneseVowels",
    "circle": "Circle",
    "basic_motions": "BasicMotions",
    "checkerboard": "Checkerboard",
    "eight_gaussians": "EightGaussians",
    "moons": "Moons",
    "pinwheel": "Pinwheel",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR-10",
    "articulary_word_recognition": "ArticularyWordRecognition",
    "character_trajectories": "CharacterTrajectories",
    "spoken_arabic_digits": "SpokenArabicDigits",
    "gas": "GAS",
    "miniboone": "MINIBOONE",
}

OPTIMIZERS = {
    "snopt": "SNOpt",
    "snopt_plus": "snopt_plus",
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD",
    "lbfgs": "L-BFGS",
    "kfac": "KFAC",
    "ekfac": "EKFAC",
    "kbfgs": "K-BFGS",
    "kbfgs_l": "K-BFGS(L)",
    "singd": "SINGD",
    "shampoo": "Shampoo",
    "soap": "SOAP",
    "muon": "Muon",
    "adahessian": "AdaHessian",
    "adagrad_norm": "AdaGrad-Norm",
}


def dataset_name(name: str) -> str:
    """Return a data set's name; the name of its configuration where it has no other."""
    return DATASETS.get(name, name)


def optimizer_name(name: str) -> str:
    """Return an optimizer's name; the name of its configuration where it has no other."""
    return OPTIMIZERS.get(name, name)


KINDS = {
    "digits": "images",
    "cifar10": "images",
    "japanese_vowels": "time series",
    "articulary_word_recognition": "time series",
}


def panel_title(name: str) -> str:
    """Return a data set's name with what it is made of, such as ``Digits (images)``."""
    return dataset_name(name) + (f" ({KINDS[name]})" if name in KINDS else "")
