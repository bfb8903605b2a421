"""Does the loop come to rest, and has each of its layers a fixed point of its own?"""

import itertools

import numpy as np
import torch

from dynloop.analyzers.contraction_rate import contraction_rate
from dynloop.analyzers.convergence_time import convergence_time
from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer, groups
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.trajectories import Trajectories

VERDICTS = ("cyclic", "degenerate", "fixed point", "no fixed point")
_LEAST = 8  # states, as in convergence_time
_ERRORS = 3.0  # half the width of a rate's interval, in standard errors: 1 loop in 100 or fewer disagrees by chance
_LEAST_MARGIN = 1e-3  # no ln rate is known better: the last points of a regime touch the floor


@analyzer(together=("layer",))
def cyclic_fixed_points(trajectories: Trajectories, *, tolerance: float = 1e-3) -> Measurement:
    """Verdict on the loop to which an orbit belongs: cyclic, degenerate, fixed point or no fixed point.

    If the loop f_L o ... o f_1 has a fixed point, so has each of its rotations: layer l comes to rest at its own
    x*_l = f_l(x*_{l-1}), for which its last state stands. Over the layers of one prompt and token:

    * no fixed point: some layer does not converge, as `convergence_time` says;
    * degenerate: all converge, and no two of their points lie farther apart than the two radii within which they are
      known (each `tolerance` of its norm, or four spacings of the number format): the layers do nothing there;
    * cyclic: all converge, and two of the points are distinct;
    * fixed point: the loop was recorded at one layer (or has no label `layer`) and converges. Whether its layers have
      distinct points cannot be asked.

    And a check that costs nothing: all rotations share their nonzero multipliers, so that the layers' contraction rates
    must agree. Here a layer's rate is that of the line through ln ||x[t+1] - x[t]|| over the regime that
    `contraction_rate` finds, alike for all layers. Each ln rate has a margin to either side, three standard errors
    (widened for the correlation along the fit) and .001 at least; the rates agree where all these intervals have a
    point in common.

    Args:
        trajectories: orbits of the layers of one looped block, told apart by the label `layer`, in its order; orbits
            that agree in all other labels belong together.
        tolerance: as in `convergence_time`, relative to the norm of the last state.

    Returns:
        Of the loop, repeated for each of its orbits: `verdict` (n_orbits,); `n_layers`; `separation`, the largest
        distance between two layers' points over the larger of their norms; `log_rate_spread`, the largest minus the
        smallest ln rate; `rates_agree`, "yes", "no", or "unknown" with fewer than two rates. Of the orbit's own layer:
        `layer_update`, ||x*_{l+1} - x*_l|| / ||x*_l|| (after the last layer comes the first); `late_distance`, median
        distance to x*_l over the last quarter, over its norm; `norm_growth`, relative growth of the norm over the last
        quarter; `rate`, that of `contraction_rate`, and `log_rate_margin`, NaN where it has none; `own_cosine` and
        `lowest_cosine` (n_orbits, n_steps), cosine of each state to x*_l, and to the layer's point that is least like
        it. `separation`, `layer_update` and `log_rate_spread` are NaN for one layer. All four verdicts are answers
        (`FOUND`). `NOT_FINITE`, `TOO_SHORT` (fewer than 8 states): the whole loop, where one of its layers is.

    Raises:
        ValueError: two orbits that agree in all labels, `layer` included.

    Misleads:
        The source looks at cosines: own near 1, and the lowest (of the first layer) below 1 or not. A cosine near 1
        proves neither: where norms grow from recurrence to recurrence (pre-norm, no injection) directions freeze, and
        layers look alike, without any fixed point. By cosines that is degenerate; here it is "no fixed point", with a
        positive `norm_growth` and an `own_cosine` near 1. Points closer than the two radii count as one; in bfloat16
        that is 6 % of the norm. Rates that disagree point at the recording or at the fit (floors that differ, a regime
        of few points), not at the model; rates that agree prove little where the regime is short. A label that differs
        from layer to layer (a running number) makes each layer a loop of its own: look at `n_layers`.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), proposition 4.1 and figures 6 and 29 to 31. A third party's audit of
        Huginn: the four points lie 52 % of the norm apart.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, cyclic_fixed_points
        >>> x, states = np.zeros(2), []
        >>> for _ in range(80):
        ...     states.append([0.8 * x + [2.0, 0.0], 0.9 * (0.8 * x + [2.0, 0.0]) + [0.0, 1.0]])
        ...     x = states[-1][1]
        >>> loop = Trajectories(np.swapaxes(states, 0, 1), labels={"layer": [1, 2]})
        >>> m = cyclic_fixed_points(loop)
        >>> print(m.values[0], m["rate"].round(3), m["rates_agree"][0])
        cyclic [0.72 0.72] yes
    """
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
    from dynloop.kernels.contraction import line  # numba loads on first use
    from dynloop.kernels.rate_errors import rate_errors

    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    n = len(lengths)
    usable = ~diverged & (lengths >= _LEAST)
    arrival = convergence_time(trajectories, tolerance=tolerance, relative_to="limit")
    rates = contraction_rate(trajectories)
    steps, regime = found.successive(), np.nan_to_num(rates["regime_length"]).astype(np.int64)
    logs = np.array([line(own, 0, m)[0] for own, m in zip(steps, regime, strict=True)])
    margins = np.where(rates.found, np.maximum(_ERRORS * rate_errors(steps, regime), _LEAST_MARGIN), np.nan)
    margins[~np.isfinite(logs)] = np.nan
    verdict, agree = np.full(n, "", dtype="<U14"), np.full(n, "", dtype="<U7")
    layers, separation, spread, update, late, growth = (np.full(n, np.nan) for _ in range(6))
    own_cosine = 1 - found.from_last(metric="cosine")
    lowest = own_cosine.copy()
    away = found.from_last(metric="relative")
    for o in np.flatnonzero(usable):
        last, quarter = lengths[o] - 1, lengths[o] // 4
        late[o] = np.median(away[o, last - quarter:last])
        with np.errstate(invalid="ignore", divide="ignore"):
            growth[o] = found.norms[o, last] / found.norms[o, last - quarter] - 1
    outcomes = np.full(n, Outcome.FOUND, dtype=object)
    for own in _loops(trajectories):
        if not usable[own].all():
            outcomes[own] = Outcome.NOT_FINITE if diverged[own].any() else Outcome.TOO_SHORT
            continue
        layers[own] = len(own)
        known = own[np.isfinite(margins[own])]
        agree[own] = "unknown"
        if len(known) > 1:
            spread[own] = np.ptp(logs[known])
            agree[own] = "yes" if (logs - margins)[known].max() <= (logs + margins)[known].min() else "no"
        settled = arrival.found[own].all()
        if len(own) == 1:
            verdict[own] = "fixed point" if settled else "no fixed point"
            continue
        points = _points(trajectories, own)
        norms, apart = np.linalg.norm(points, axis=1), np.zeros((len(own), len(own)))
        for a, b in itertools.combinations(range(len(own)), 2):
            apart[a, b] = apart[b, a] = np.linalg.norm(points[a] - points[b])
        with np.errstate(invalid="ignore", divide="ignore"):
            separation[own] = np.where(apart > 0, apart / np.maximum.outer(norms, norms), 0.0).max()
            update[own] = np.roll(apart, -1, axis=1).diagonal() / norms
            lowest[own] = _lowest_cosine(trajectories, own, points / norms[:, None], found.norms[own])
        radius = arrival["radius"][own]
        distinct = bool((apart > np.add.outer(radius, radius)).any())
        verdict[own] = "no fixed point" if not settled else "cyclic" if distinct else "degenerate"
    missing = outcomes != Outcome.FOUND
    rate = np.where(rates.found, np.exp(logs), np.nan)
    for values in (late, growth, rate, margins, own_cosine, lowest):
        values[missing] = np.nan
    return Measurement(
        "cyclic_fixed_points",
        {"verdict": verdict, "n_layers": layers, "separation": separation, "layer_update": update,
         "late_distance": late, "norm_growth": growth, "rate": rate, "log_rate_margin": margins,
         "log_rate_spread": spread, "rates_agree": agree, "own_cosine": own_cosine, "lowest_cosine": lowest},
        outcomes, units={"rate": "per recurrence"}, settings={"tolerance": tolerance}, labels=trajectories.labels,
        categories={"verdict": VERDICTS, "rates_agree": ("yes", "no", "unknown")})


def _loops(trajectories: Trajectories) -> list[np.ndarray]:
    """Orbits of each loop, in the order of their layers."""
    number = groups(trajectories.labels, trajectories.n_orbits, ("layer",))
    order = np.argsort(number, kind="stable")
    loops = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
    if "layer" not in trajectories.labels:
        return loops
    layers = trajectories.labels["layer"]
    loops = [own[np.argsort(layers[own], kind="stable")] for own in loops]
    for own in loops:
        if (same := layers[own][1:] == layers[own][:-1]).any():
            raise ValueError(f"label 'layer' must tell orbits apart that agree in all other labels; got "
                             f"{layers[own][1:][same][0]} twice. Add a label that does, for example token.")
    return loops


def _points(trajectories: Trajectories, own: np.ndarray) -> np.ndarray:
    """Last finite states of some orbits, (n, dim) in float64."""
    at = torch.as_tensor(trajectories.lengths[own] - 1)
    return trajectories.states[torch.as_tensor(own), at].to("cpu", torch.float64).numpy()


def _lowest_cosine(trajectories: Trajectories, own: np.ndarray, directions: np.ndarray, norms: np.ndarray) \
        -> np.ndarray:
    """Lowest cosine of each state of a loop to its layers' directions, (layers, n_steps)."""
    wide = torch.float64 if trajectories.states.dtype == torch.float64 else torch.float32
    compass = torch.as_tensor(directions).to(trajectories.states.device, wide).T
    products = [(trajectories.states[int(o)].to(wide) @ compass).amin(-1).cpu().numpy() for o in own]
    with np.errstate(invalid="ignore"):
        return (np.stack(products).astype(np.float64) / norms).clip(-1, 1)
