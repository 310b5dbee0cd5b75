"""From the outputs of participants to predictions of what is known about some of them.

Whatever is learned from data is learned in the training folds; every prediction stands beside its
baselines on the same folds.
"""
