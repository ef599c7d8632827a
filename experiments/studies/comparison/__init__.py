"""A comparison of optimizers by training time to a target, after the rules of AlgoPerf.

Dahl et al. (2023), "Benchmarking Neural Network Training Algorithms", arXiv 2306.07179: the target
is declared before anything is compared, every optimizer gets the same number of quasi-random trials
of its own space, a study's score is its fastest trial, an optimizer's score the median over
studies, and a miss is infinite.
"""
