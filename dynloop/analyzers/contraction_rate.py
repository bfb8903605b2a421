"""How fast does the orbit contract, before rounding takes over?"""

from collections.abc import Mapping

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer, groups
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

_FORMAT_FLOOR = 0.3  # rounding a state moves it by about this many spacings, relative to its norm, and more in a loop
_ROUNDING = 0.2125  # by this many in the mean square: sqrt(.541 / 12), for errors and digits spread evenly
_AT_FLOOR = 8.0  # a floor of up to this many spacings is the number format's; above, the orbit itself moves
_STILL_MOVING = 8.0  # a floor of noise keeps the states within this many steps of the last one
_BLUR, _BLUR_OF_FLOAT64 = 2e-7, 1e-15  # relative error of squared distances
_INSIDE_AT_FORMAT_FLOOR, _INSIDE = 0.5, 0.02  # prior probability that errors are made in the loop, not in the record
_FALL = 1.25  # decay -ln rho times the states used that a mode must have which the steps do not show; log t has less
_SEEN, _SURE, _BEYOND_DOUBT = 2.5, 4.0, 6.0  # deviates of the slowest mode: to give its rate; to find one at all
_WHITE, _LEVEL = 0.3, 3.0  # what a fit of modes leaves: correlation of successive states; early over late states
_NO_IDEA = 50.0  # an error of ln rho that leaves everything open
_SLOWER = 0.95  # decay of the line through the steps, over that of the fit, from which on the two disagree
_MANY_MODES, _MANY_EARLY = 0.03, 3.0  # share of the motion left, and early over late: more modes than can be told apart


@analyzer(together=("start",))
def contraction_rate(trajectories: Trajectories, *, floor_factor: float = 3.0, min_points: int = 5,
                     confidence_level: float = 0.95) -> Measurement:
    """Factor by which a recurrence shrinks the distance from the limit: modulus of the slowest mode that is excited.

        x[t] = limit + sum over modes k of c[k] lambda[k]^t + noise,   rho = max |lambda[k]|

    Whether there is a rate is asked of the steps delta[t] = ||x[t+1] - x[t]||:

    * floor = median of the last quarter of the steps, and at least 0.3 spacings of the number format times the norm
      of the last state (a floor of 0 means "frozen on the number grid", not super-contraction);
    * the regime ends with the last step above `floor_factor` floors before the steps come to lie mostly (in the median
      of eight) below: a late outlier does not prolong it. The line through ln delta[t] must shrink the step by
      `floor_factor` in all, and fall by more than four standard errors of its slope;
    * a last quarter that still falls, beyond six standard errors of its own line, is no floor. If it and the last
      eighth fall at least half as fast as the record before, the whole record is the regime and the floor is NaN (not
      reached); where only the last eighth has levelled, the floor was met late, and is the median of that eighth (of
      the last sixteenth, where the quarter as a whole falls as before);
    * steps that drown in the floor at once may hide a slow mode that the states show: where a decaying mode stands out
      beyond doubt and what it leaves is noise, it counts as well.

    What the rate is follows from all states at once, before rounding freezes them: limit, coefficients and up to six
    real or complex multipliers by least squares (variable projection), on the principal components that stand out
    from noise. Modes are added and removed by what their energy is beyond that of noise. The interval is that of the
    error of the fit in the direction of the slowest mode, with the correlation in time that the noise is seen to have
    (rounding repeats itself where states hardly move) and, where the residuals say so, with errors that are made
    inside the loop and carried on; what rounding of the distances does is added. It is averaged over larger models by
    their Bayes factors, up to two of them where modes are crowded (the slowest one is split, if need be). Over many
    orbits 95 % intervals cover 92 to 99 % (bfloat16 with few states above its spacing: up to all). Where the distance
    falls by more than 10^4 and faster modes than can be fitted are left, the fit starts later. Where modes are too many
    to be told apart (a rotation with all multipliers on one circle), the line through ln delta[t] gives the rate. It
    also does where it is slower and surer than the fit; the interval then holds those of both.

    With a label "start" that tells initial states apart (orbits that agree in all other labels), the orbit is compared
    with the mean of its partners: their difference needs no limit, x[t] = 0 + modes + noise.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        floor_factor: steps above this many floors belong to the regime.
        min_points: fewest points to fit.
        confidence_level: probability with which the interval shall cover the rate.

    Returns:
        `rate` (n_orbits,), per recurrence, and its interval `rate_low`, `rate_high` (at most 1); `floor` (n_orbits,),
        in state units; `relative_floor`, over the norm of the last state; `regime_length`, in steps; `starts`, how
        many orbits were compared: 1 where the orbit stood alone, or its partners do not come closer. Where the steps
        level off, floor and length are given without a rate, too; the floor is NaN where the steps alone would say that
        the orbit moves. Outcomes:
        `AT_PRECISION_FLOOR`: fewer than `min_points` steps before the floor of the number format. `NOT_CONVERGED`: no
        regime, and the orbit still moves (drift, a lasting orbit), or its steps shrink, but too little or not
        geometrically.
        `NOT_FOUND`: the steps do not shrink beyond doubt. `NOT_FINITE`, `TOO_SHORT`.

    Misleads:
        A mode that the start does not excite, or that dies within the noise, is not seen: the rate is that of the
        slowest mode in this orbit, in one feature or token perhaps not that of the loop. In few dimensions many
        crowded modes look like few; the interval then says so, and may reach from 0 to 1. Transients that are not
        linear count as modes. A slow mode much weaker than the rest may pass for the limit. The steps of an orbit that
        contracts onto a cycle are fitted before they level off: look at `relative_floor`, which then lies far above
        the format's spacing. Within noise, what slows down like 1 / t^2 or even log t may look like a sum of decays
        (log t with 1 % of noise, 128 states: half of the orbits and more); without noise it does not. Intervals of
        orbits of one prompt are not independent of one another.

    Source:
        The floor: a third party's audit of Huginn (floor = median of the last quarter, factor 3), whose full-window
        fit gave .924 where the regime gave .841. There the regime ends with the last step above 3 floors, wherever it
        lies; one outlier at the floor then makes the whole record the regime (.97 for a true .2 on a shipped model).
        The fit: Askham and Kutz 2018, optimised dynamic mode decomposition (SIAM J. Appl. Dyn. Syst. 17, 380), here
        with the limit as a mode of its own, weighted as in Viberg, Ottersten and Kailath 1991 (IEEE Trans. Signal
        Process. 39, 2436). The interval is ours.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, contraction_rate
        >>> decay = 0.8 ** np.arange(60)[None, :, None] * np.ones((1, 1, 16))
        >>> rate = contraction_rate(Trajectories(1 + decay.astype("float32")))
        >>> round(float(rate.values[0]), 3)
        0.8
    """
    check_number("floor_factor", floor_factor, lambda v: 1 <= v < np.inf, "at least 1 (the default is 3)")
    check_whole("min_points", min_points, 3, "a whole number of at least 3: a line needs three points to be judged "
                                             "(the default is 5)")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1, both excluded (the "
                                                                           "default is 0.95)")
    from dynloop.kernels.contraction import FITTED  # numba loads on first use

    lengths, diverged = trajectories.lengths, trajectories.diverged
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    found = distances(trajectories)
    end = np.take_along_axis(found.norms, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    settings = (float(floor_factor), int(min_points), float(confidence_level))
    usable = np.where(diverged, 0, lengths)
    alone = _Rates(trajectories, usable, np.nan_to_num(spacing * end), settings)
    outcomes, moving = alone.outcomes(found.from_last(), spacing, end)
    for o in np.flatnonzero(diverged):
        outcomes[o] = Outcome.NOT_FINITE
    rates = np.stack([alone.rate, alone.low, alone.high], axis=1)
    starts = np.ones(trajectories.n_orbits)
    members, partners = _partners(trajectories.labels, usable, min_points)
    if len(members):
        pairs = _differences(trajectories, members, partners)
        grain = spacing * end[members] * np.sqrt(1 + 1 / partners)
        compared = _Rates(pairs, pairs.lengths, grain, settings, limit_is_zero=True)
        better = (compared.state == FITTED) | compared.convinced
        rates[members[better]] = np.stack([compared.rate, compared.low, compared.high], axis=1)[better]
        starts[members[better]] = partners[better] + 1
        alone.floor[members[better]] = compared.floor[better]
        alone.regime[members[better]] = compared.regime[better]
        moving[members[better]] = False
        for o in members[better]:
            outcomes[o] = Outcome.FOUND
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(alone.floor == 0, 0.0, alone.floor / end)  # frozen in 0
    alone.floor[moving], relative[moving] = np.nan, np.nan  # the typical step of a moving orbit is no floor
    rates[[outcome is not Outcome.FOUND for outcome in outcomes]] = np.nan
    return Measurement(
        "contraction_rate",
        {"rate": rates[:, 0], "rate_low": rates[:, 1], "rate_high": rates[:, 2], "floor": alone.floor,
         "relative_floor": relative, "regime_length": alone.regime.astype(np.float64), "starts": starts},
        outcomes, units={"rate": "per recurrence", "rate_low": "per recurrence", "rate_high": "per recurrence",
                         "floor": "state units", "regime_length": "steps", "starts": "orbits"},
        settings={"floor_factor": floor_factor, "min_points": min_points, "confidence_level": confidence_level},
        labels=trajectories.labels)


class _Rates:
    """Floors, regimes and rates of orbits, or of differences between orbits, whose limit is 0.

    Attributes:
        rate, low, high: (n,) rates with their intervals, whatever the outcome.
        floor, regime, state: (n,) as `contraction_regime` gives them.
        convinced: (n,) a decaying mode stands out beyond doubt, and what it leaves is noise.
    """

    @np.errstate(over="ignore", invalid="ignore")  # orbits that explode have squares beyond float64, and no rate
    def __init__(self, trajectories: Trajectories, lengths: np.ndarray, grain: np.ndarray,
                 settings: tuple[float, int, float], *, limit_is_zero: bool = False) -> None:
        from dynloop.kernels import slowest_mode as at
        from dynloop.kernels.contraction import contraction_regime, line_doubt

        found = distances(trajectories)
        floor_factor, self.min_points, confidence_level = settings
        steps = found.norms if limit_is_zero else found.successive()
        self.n_steps = np.maximum(lengths - (0 if limit_is_zero else 1), 0)
        self.grain = grain
        slopes, self.floor, self.regime, self.state = contraction_regime(
            steps, self.n_steps, _FORMAT_FLOOR * grain, floor_factor, self.min_points)
        estimates, about = _modes(trajectories, lengths, grain, limit_is_zero)
        decay, span = estimates[:, 0, at.DECAY], about[:, at.STOP] - about[:, at.FIRST]
        decays = (decay * span >= np.log(floor_factor)) & (about[:, at.ENERGY] >= _SEEN)
        many = (about[:, at.LEFT] > _MANY_MODES) & (about[:, at.EARLY] > _MANY_EARLY)
        low, high = _interval(estimates, confidence_level)
        noise = np.sqrt(np.maximum(about[:, at.STATE_NOISE], 0.0))
        away = found.norms if limit_is_zero else found.from_last()
        beyond = (np.nan_to_num(away) > floor_factor * np.maximum(noise, _FORMAT_FLOOR * grain)[:, None]).sum(1)
        white = (np.abs(about[:, at.AUTOCORRELATION]) < _WHITE) | (noise < _AT_FLOOR * grain)
        self.convinced = (decays & (decay * span >= _FALL) & ~many & white & (about[:, at.EARLY] < _LEVEL)
                          & (beyond >= self.min_points)
                          & (about[:, at.ENERGY] >= _BEYOND_DOUBT) & (decay > _SURE * estimates[:, 0, at.ERROR]))
        for o in np.flatnonzero(np.isfinite(slopes) & (many | ~decays | (-slopes < _SLOWER * decay))):
            error, freedom = line_doubt(steps[o], 0, self.regime[o], slopes[o])
            reach = _quantile(freedom, 0.5 + 0.5 * confidence_level) * error
            if many[o] or not decays[o]:
                decay[o], low[o], high[o] = -slopes[o], -slopes[o] - reach, -slopes[o] + reach
            elif 2 * reach < high[o] - low[o]:  # slower, and surer: the fit has lost a mode
                decay[o], low[o], high[o] = -slopes[o], min(low[o], -slopes[o] - reach), high[o]
        self.rate = np.exp(-decay)
        self.low, self.high = np.exp(-high), np.maximum(np.minimum(np.exp(-np.maximum(low, -1.0)), 1.0), self.rate)

    def outcomes(self, away: np.ndarray, spacing: float, end: np.ndarray) -> tuple[list[Outcome], np.ndarray]:
        """What became of each orbit, by its steps or by a mode that they hide; (n,) whether its steps say it moves."""
        from dynloop.kernels.contraction import NOT_SHRINKING, STILL_FALLING, TOO_FEW

        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(self.floor == 0, 0.0, self.floor / end)
        found = []
        for o, m in enumerate(self.n_steps):
            if m < self.min_points:
                found.append(Outcome.TOO_SHORT)
            elif self.state[o] == STILL_FALLING or (relative[o] > _AT_FLOOR * spacing and (
                    self.state[o] == TOO_FEW or np.median(away[o, m - m // 4:m]) > _STILL_MOVING * self.floor[o])):
                found.append(Outcome.NOT_CONVERGED)
            elif self.state[o] == NOT_SHRINKING:
                found.append(Outcome.NOT_FOUND)
            elif self.state[o] == TOO_FEW:
                found.append(Outcome.AT_PRECISION_FLOOR)
            else:
                found.append(Outcome.FOUND)
        moving = np.array([outcome is Outcome.NOT_CONVERGED for outcome in found])
        return [Outcome.FOUND if seen and outcome is not Outcome.TOO_SHORT else outcome
                for seen, outcome in zip(self.convinced, found, strict=True)], moving


def _modes(trajectories: Trajectories, lengths: np.ndarray, grain: np.ndarray,
           limit_is_zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """What `slowest_modes` says of these orbits, computed once for all who ask."""
    from dynloop.kernels.slowest_mode import middle, slowest_modes

    if "slowest_modes" not in trajectories.derived:
        found = distances(trajectories)
        away = found.norms if limit_is_zero else found.from_last()
        late = np.array([middle(row[m - 1 - max(m // 8, 1):m - 1]) if m > 1 else 0.0
                         for row, m in zip(away, lengths, strict=True)])
        inside = np.where(late <= _AT_FLOOR * grain, _INSIDE_AT_FORMAT_FLOOR, _INSIDE)
        blur = _BLUR_OF_FLOAT64 if trajectories.states.dtype == torch.float64 else _BLUR
        trajectories.derived["slowest_modes"] = slowest_modes(
            found.squared, found.norms, lengths, limit_is_zero, (_ROUNDING * grain) ** 2, blur, inside)
    estimates, about = trajectories.derived["slowest_modes"]
    return estimates.copy(), about


def _partners(labels: Mapping[str, np.ndarray], lengths: np.ndarray, min_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Orbits that have others from different starts, and how many each: groups follow one another."""
    members: list[int] = []
    partners: list[int] = []
    if "start" in labels:
        number = groups(labels, len(lengths), ("start",))
        for g in range(number.max() + 1):
            own = np.flatnonzero((number == g) & (lengths > min_points))
            if len(own) > 1 and len(set(labels["start"][own].tolist())) == len(own):
                members.extend(own.tolist())
                partners.extend([len(own) - 1] * len(own))
    return np.array(members, dtype=np.int64), np.array(partners, dtype=np.float64)


def _differences(trajectories: Trajectories, members: np.ndarray, partners: np.ndarray) -> Trajectories:
    """Each member less the mean of its partners; a group of them is as long as its shortest."""
    dtype = torch.float64 if trajectories.states.dtype == torch.float64 else torch.float32
    states = trajectories.states[torch.as_tensor(members, device=trajectories.states.device)].to(dtype)
    lengths = trajectories.lengths[members]
    first = 0
    while first < len(members):
        stop = first + int(partners[first]) + 1
        group = states[first:stop]
        states[first:stop] = group - (group.sum(0) - group) / (len(group) - 1)
        lengths[first:stop] = lengths[first:stop].min()
        first = stop
    return Trajectories(states, lengths=lengths, resolution=trajectories.resolution)


def _interval(estimates: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles (n,) and (n,) of mixtures of t distributions: decays, errors, degrees of freedom and odds (n, m, 4)."""
    from scipy.special import stdtr

    decay, error, freedom, odds = np.moveaxis(estimates[:, :, :4], 2, 0)
    there = (odds > 0) & np.isfinite(decay) & np.isfinite(error)
    there[:, 0] = True
    decay = np.where(there, decay, decay[:, :1])
    error = np.nan_to_num(np.where(there, error, error[:, :1]), nan=_NO_IDEA, posinf=_NO_IDEA)
    error = np.minimum(np.maximum(error, 1e-12 * decay + 1e-300), _NO_IDEA)
    freedom, odds = np.maximum(freedom, 1.0), np.where(there, odds, 0.0)
    odds[:, 0] = 1.0
    odds /= odds.sum(1, keepdims=True)
    bounds = []
    for share in (0.5 - 0.5 * level, 0.5 + 0.5 * level):
        low, high = np.full(len(decay), -1.0), np.full(len(decay), _NO_IDEA)  # exp(1) and nearly 0: any rate
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = (odds * stdtr(freedom, (middle[:, None] - decay) / error)).sum(1) < share
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        bounds.append(0.5 * (low + high))
    return bounds[0], bounds[1]


def _quantile(freedom: float, share: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))
