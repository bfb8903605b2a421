"""Boosted decision trees: the sums of leaf values from which class probabilities follow."""

import numpy as np

from dynloop.kernels import kernel


@kernel
def tree_sums(rows, columns, feature, threshold, left, right, value, roots, n_classes, sums):
    """Add up, for every row and class, the leaves that the row falls into.

    Args:
        rows: (n, features) numbers.
        columns: which of them the trees know, in their order.
        feature, threshold, left, right: (nodes,) the row goes left where its feature is at most the threshold; a leaf
            has feature -1.
        value: (nodes,) of leaves.
        roots: (trees,) first node of each tree; trees of the classes take turns.
        n_classes: how many.
        sums: (n, n_classes) output, added to.
    """
    for o in range(len(rows)):
        for k in range(len(roots)):
            node = roots[k]
            while feature[node] >= 0:
                node = left[node] if rows[o, columns[feature[node]]] <= threshold[node] else right[node]
            sums[o, k % n_classes] += value[node]


def probabilities(sums: np.ndarray) -> np.ndarray:
    """Class probabilities (n, classes) from sums (n, classes); one column of two classes is that of the second."""
    if sums.shape[1] == 1:
        sums = np.concatenate([np.zeros_like(sums), sums], axis=1)
    weights = np.exp(sums - sums.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
