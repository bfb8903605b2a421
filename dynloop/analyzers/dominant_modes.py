"""Which modes carry the orbit to its limit: how slowly do they decay, and how fast do they turn?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

_FORMAT_FLOOR = 0.3  # rounding a state moves it by about this many spacings, relative to its norm
_AT_FLOOR = 8.0  # a floor of up to this many spacings is the number format's; above, the orbit itself moves
_STILL_MOVING = 8.0  # a floor of noise keeps the states within this many steps of the last one
_AFTER_FLOOR = 8  # noise may be averaged: twice the steps to its floor, and this many, are of use
_BLUR = 16 * 2.0**-52  # products are sums of distances, and less exact than these where one state is far away
_DECAY = 0.5  # 1 - rho times the steps used: below, a mode has hardly decayed
_EXACT = 1e-3  # of 1 - rho: a doubt that needs no later start of the regime
_FAITHFUL, _NOISY = 0.1, 0.5  # share of the motion that a fit may leave: without a floor of noise to explain it; with


@analyzer
def dominant_modes(trajectories: Trajectories, *, n_modes: int = 4, max_rank: int = 8, floor_factor: float = 3.0,
                   min_points: int = 5) -> Measurement:
    """Multipliers of the slowest modes of an orbit, before the floor: x[t] = limit + sum of Re(c[k] lambda[k]^t).

    The dynamic mode decomposition of the differences x[t + 1] - x[t], in the form that noise biases least:

    * regime: the states until they come to lie within `floor_factor` floors of the last one (the floor as in
      `contraction_rate`), and, where the floor is one of noise, which averages out, as many again;
    * for each rank up to `max_rank`, least squares fit the map y[t + 1] = Phi y[t] + b to the leading principal
      components of the states; its eigenvalues are those of the decomposition of differences of that rank;
    * rank = the least of n ln(squares left) + (1 + q) rank over n states; q is the upper quantile (one in 30,000) of
      chi-squared over its degrees of freedom, as many as noise seems to have dimensions;
    * the multipliers are then moved to where their powers fit the orbit itself best, and those are taken out that
      explain less than q times what a power of noise would;
    * where more is left of the early states than of the late ones, or what is left is a smooth curve, there are faster
      modes than `max_rank` can hold: the regime then starts later, a quarter at a time, until they have died out.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        n_modes: modes to return, the slowest first.
        max_rank: multipliers to fit at most; a complex one counts twice, with its conjugate.
        floor_factor: states farther than this many floors from the last one belong to the regime.
        min_points: fewest states before the floor; a fit takes at least twice as many in all.

    Returns:
        `slowest` (n_orbits,), the largest modulus; `rho` (n_orbits, n_modes), moduli, largest first, and `angle`
        (n_orbits, n_modes), radians a recurrence from 0 (monotone) to pi (alternating), a pair of conjugates once; NaN
        beyond the last mode. Each (n_orbits,): `rank`, multipliers in the fit; `spread`, by how much the slowest
        modulus differs at other ranks; `error`, its standard error for white noise; `residual`, root-mean-square of
        what the fit leaves over that of the motion (these three are 0 where the distances cannot resolve them);
        `first_step` and `n_steps` of the states used. Outcomes:
        `AT_PRECISION_FLOOR`: fewer than `min_points` states before the floor of the number format. `NOT_CONVERGED`: the
        orbit moves on (drift, cycle, noise from the start), or its slowest mode does not decay: 1 - rho is within three
        errors or spreads of 0, or below 0.5 over the number of steps used. `NOT_FOUND`: no mode stands out from noise,
        or no `max_rank` of them describe the orbit. `NOT_FINITE`; `TOO_SHORT`, below twice `min_points` states.

    Misleads:
        Only modes that the orbit excites can be seen, and only those that move the states by more than the floor: in
        bfloat16 states may freeze before the slowest shows. Where modes are crowded the slowest stands for several, and
        its `error`, which takes the number of modes for certain, is too small. Modes that move the states along one
        line, or more modes than dimensions, cannot be told apart. Multipliers are of the orbit, hence those of the map
        at its fixed point only where it is linear that far out.

    Source:
        Schmid 2010 (J. Fluid Mech. 656); differences and centring: Hirsh et al. 2020 (SIAM J. Appl. Dyn. Syst. 19);
        noise, and fits to the orbit itself: Dawson et al. 2016 (Exp. Fluids 57), Askham and Kutz 2018 (SIAM J. Appl.
        Dyn. Syst. 17). A rank sweep on the differences before the floor is how a third party's audit of Huginn found
        its modes.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, dominant_modes
        >>> t, (a, b, c) = np.arange(64)[:, None], np.random.default_rng(0).normal(size=(3, 16))
        >>> orbit = 1 + 0.9**t * (np.cos(0.5 * t) * a + np.sin(0.5 * t) * b) + 0.6**t * c
        >>> m = dominant_modes(Trajectories(orbit[None]), n_modes=2)
        >>> m["rho"].round(6), m["angle"].round(6)
        (array([[0.9, 0.6]]), array([[0.5, 0. ]]))
    """
    check_whole("n_modes", n_modes, 1, "a whole number of at least 1 (the default is 4)")
    check_whole("max_rank", max_rank, 1, "a whole number of at least 1 (the default is 8)")
    check_number("floor_factor", floor_factor, lambda v: 1 <= v < np.inf, "at least 1 (the default is 3)")
    check_whole("min_points", min_points, 3, "a whole number of at least 3 (the default is 5)")
    from dynloop.kernels.contraction import contraction_regime  # numba loads on first use
    from dynloop.kernels.modes import products_from_last

    n, lengths, diverged = trajectories.n_orbits, trajectories.lengths, trajectories.diverged
    everything = distances(trajectories)
    steps, away = everything.successive(), everything.from_last()
    n_steps = np.where(diverged, 0, np.maximum(lengths - 1, 0))
    own = trajectories.states.dtype
    spacing = max(trajectories.resolution, torch.finfo(own).eps)
    blur = _BLUR if own == torch.float64 else torch.finfo(torch.float32).eps
    grain = np.nan_to_num(spacing * everything.norms[np.arange(n), np.maximum(lengths - 1, 0)])
    floors = contraction_regime(steps, n_steps, _FORMAT_FLOOR * grain, float(floor_factor), int(min_points))[1]
    rho, angle, about = np.full((n, n_modes), np.nan), np.full((n, n_modes), np.nan), np.full((6, n), np.nan)
    outcomes = []
    for o, m in enumerate(lengths):
        if diverged[o] or m < 2 * min_points:
            outcomes.append(Outcome.NOT_FINITE if diverged[o] else Outcome.TOO_SHORT)
            continue
        products = products_from_last(everything.squared[o, :m, :m])
        if not np.isfinite(products).all():  # squares leave the numbers where states do not
            outcomes.append(Outcome.NOT_FINITE)
            continue
        outcome, modes, numbers = _modes(products, steps[o, :m - 1], away[o, :m], floors[o], grain[o], blur,
                                         min(int(max_rank), int(m)), float(floor_factor), int(min_points))
        outcomes.append(outcome)
        if outcome is Outcome.FOUND:
            kept = modes[:n_modes]
            rho[o, :len(kept)], angle[o, :len(kept)], about[:, o] = np.abs(kept), np.angle(kept), numbers
    return Measurement(
        "dominant_modes",
        {"slowest": rho[:, 0].copy(), "rho": rho, "angle": angle,
         **dict(zip(("rank", "spread", "error", "residual", "first_step", "n_steps"), about, strict=True))}, outcomes,
        units={**dict.fromkeys(("slowest", "rho", "spread", "error"), "per recurrence"),
               "angle": "radians per recurrence", "first_step": "steps", "n_steps": "steps"},
        settings={"n_modes": n_modes, "max_rank": max_rank, "floor_factor": floor_factor, "min_points": min_points},
        labels=trajectories.labels)


def _modes(products: np.ndarray, steps: np.ndarray, away: np.ndarray, floor: float, grain: float, blur: float,
           max_rank: int, floor_factor: float, min_points: int) -> tuple[Outcome, np.ndarray, tuple]:
    """Outcome, multipliers, and rank, spread, error, residual, first step and number of steps, of one orbit."""
    from dynloop.kernels.contraction import regime_end
    from dynloop.kernels.modes import window_modes

    m, noise, least = len(steps), 0.0, 2 * min_points
    stop = m + 1  # states of use; frozen ones are none
    while stop > 1 and steps[stop - 2] == 0:
        stop -= 1
    if stop <= m:
        stop -= 1
    if np.isnan(floor):
        moving, ends = True, {stop}
    else:
        quarter = m - max(m // 4, 1)
        reached = regime_end(away[:m], floor_factor * floor)
        moving = floor > _AT_FLOOR * grain
        if reached < min_points:
            return Outcome.NOT_CONVERGED if moving else Outcome.AT_PRECISION_FLOOR, products[0, :0], ()
        noise = float(np.mean(steps[quarter:] ** 2)) / 2
        longer = 2 * reached + _AFTER_FLOOR
        ends = {min(stop, v) for v in (longer if moving else reached + 2, longer, stop)}
        moving &= bool(np.median(away[quarter:m]) > _STILL_MOVING * floor)
    rounding = grain**2 + 1e-4 * blur * float(products.diagonal().max())
    first: tuple | None = None  # what the whole regime gives
    for end in sorted(ends):
        start, best = 0, None
        while end - start >= least:
            length = end - start
            stretch = np.ascontiguousarray(products[start:end, start:end])
            modes, errors, about = window_modes(stretch, max_rank, blur, rounding)
            if len(modes) == 0:
                break
            rank, spread, total, left, early, late, correlation, _ = about
            share = np.sqrt(left / total)
            invisible = left <= 4 * (length * rounding + blur * total)  # rounding, of states or of distances
            even = early <= 4 * late + 4 * (length // 3) * rounding and correlation <= 0.25
            like_noise = start == 0 and share <= _NOISY and left <= 1.5 * noise * (length - rank - 1)
            doubt = max(spread, errors[0])
            seen = (0.0 if invisible and v < 4 * np.sqrt(blur) else v for v in (spread, errors[0], share))
            found = modes, (rank, *seen, start, length)
            first = first or found
            if (share <= _FAITHFUL and (invisible or even)) or (even and like_noise):
                if best is None or doubt < best[0]:
                    best = doubt, found
                if (even and not invisible) or doubt <= _EXACT * abs(1 - np.abs(modes[0])):
                    break  # a later start could not better it
            elif best is not None:
                break
            start += max(length // 4, 1)
        if best is not None:
            break
    if first is None:
        return Outcome.NOT_CONVERGED if moving else Outcome.NOT_FOUND, products[0, :0], ()
    modes, numbers = first if best is None else best[1]
    decay = 1 - np.abs(modes[0])
    if decay * numbers[5] < _DECAY or (best is not None and decay <= 3 * max(numbers[1], numbers[2])):
        return Outcome.NOT_CONVERGED, modes, numbers
    return Outcome.NOT_FOUND if best is None else Outcome.FOUND, modes, numbers
