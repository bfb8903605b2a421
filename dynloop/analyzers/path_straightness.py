"""How much of its way does the orbit get anywhere, within a loop and from one loop to the next?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer, groups
from dynloop.outcome import Outcome
from dynloop.trajectories import Trajectories


@analyzer(together=("block",))
def path_straightness(trajectories: Trajectories) -> Measurement:
    """Straight distance from start to end over the length of the path, and the drift-to-loop ratio.

    Two quantities, often confused. The first is one orbit's own:

        straightness = ||x[T-1] - x[0]|| / sum over t of ||x[t+1] - x[t]||

    1 is a straight path, whatever its speed; 0 a path that ends where it began. A random walk in many dimensions has
    1 / sqrt(T-1), white noise 1 / (T-1), a spiral of multiplier z = rho e^(i phi)
    |1 - z^(T-1)| (1 - rho) / (|1 - z| (1 - rho^(T-1))).

    The second needs a model that loops several blocks, one after the other, K recurrences each:

        drift_to_loop_ratio[g] = ||x_{g+1}[0] - x_g[K]|| / mean over k of ||x_g[k+1] - x_g[k]||

    the jump from the last state of block g to the first of block g+1, over the mean step within block g; much above 1
    means two scales of movement.

    Args:
        trajectories: orbits. The label `block`, where there is one, numbers blocks that are looped one after the other;
            orbits that agree in all other labels belong together, ordered by it.

    Returns:
        `straightness` (n_orbits,); `path_length` and `displacement`, the two it is made of, in state units;
        `drift_to_loop_ratio`, NaN for the last block (and for every orbit of a recording without the label `block`),
        where the next block has no state, and where no step moves. Outcomes: `NOT_FOUND`: the orbit never moves.
        `TOO_SHORT`: fewer than three states (one step is always straight). `NOT_FINITE`.

    Raises:
        ValueError: two orbits that agree in all labels, `block` included: which follows which cannot be told.

    Misleads:
        Noise adds to the path at every step and to the displacement hardly at all: a settled orbit looks the less
        straight the longer it was recorded. Compare orbits of equal length, or cut them where `convergence_time` says
        so. The layers of *one* looped block alternate within each recurrence, so that no layer's first state follows
        another's last: label them `layer`, never `block`. Where a block's input was not recorded as its first state,
        the jump contains one application of that block.

    Source:
        Drift-to-loop ratio: Pappone et al. 2025 (arXiv 2509.23314), where x_g[0] is the input of group g. The
        straightness is what is often quoted under its name.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, path_straightness
        >>> there_and_back = np.array([[[0.0], [1.0], [2.0], [1.0]], [[5.0], [5.0], [6.0], [6.0]]])
        >>> m = path_straightness(Trajectories(there_and_back, labels={"block": [0, 1]}))
        >>> m.values, m["drift_to_loop_ratio"]
        (array([0.33333333, 1.        ]), array([ 4., nan]))
    """
    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    steps, displacement = np.nan_to_num(found.successive()), found.from_last()[:, 0].copy()
    # an orbit's own steps alone, so that neither what lies beyond nor its company changes the last digit
    length = np.array([row[:max(m, 0)].sum() for row, m in zip(steps, lengths - 1, strict=True)])
    ratio = np.full(len(lengths), np.nan)
    for o, following in _following(trajectories):
        if lengths[following] and lengths[o] > 1 and length[o] > 0 and not diverged[o]:
            end, start = (trajectories.states[i, t].to("cpu", torch.float64) for i, t in ((o, lengths[o] - 1),
                                                                                         (following, 0)))
            ratio[o] = float(torch.linalg.vector_norm(start - end)) / (length[o] / (lengths[o] - 1))
    outcomes = np.array([Outcome.NOT_FINITE if gone else Outcome.TOO_SHORT if m < 3 else
                         Outcome.FOUND if way > 0 else Outcome.NOT_FOUND
                         for m, gone, way in zip(lengths, diverged, length, strict=True)], dtype=object)
    missing = outcomes != Outcome.FOUND
    with np.errstate(invalid="ignore", divide="ignore"):
        straightness = np.minimum(displacement / length, 1.0)
    for values in (straightness, length, displacement, ratio):
        values[missing] = np.nan
    return Measurement("path_straightness", {"straightness": straightness, "path_length": length,
                                             "displacement": displacement, "drift_to_loop_ratio": ratio}, outcomes,
                       units={"path_length": "state units", "displacement": "state units"},
                       labels=trajectories.labels)


def _following(trajectories: Trajectories) -> list[tuple[int, int]]:
    """Pairs of orbits of which the second is the next block of the first."""
    if "block" not in trajectories.labels:
        return []
    blocks, pairs = trajectories.labels["block"], []
    number = groups(trajectories.labels, trajectories.n_orbits, ("block",))
    for one in range(number.max() + 1):
        own = np.flatnonzero(number == one)
        own = own[np.argsort(blocks[own], kind="stable")]
        if (same := blocks[own][1:] == blocks[own][:-1]).any():
            raise ValueError(f"label 'block' must tell orbits apart that agree in all other labels; got "
                             f"{blocks[own][1:][same][0]} twice. Add a label that does, for example token.")
        pairs += list(zip(own[:-1].tolist(), own[1:].tolist(), strict=True))
    return pairs
