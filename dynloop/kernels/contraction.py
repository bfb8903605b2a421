"""The contraction regime of a series of step norms: where it ends, and its rate."""

import numpy as np

from dynloop.kernels import kernel

FITTED, TOO_FEW, STILL_FALLING = 0, 1, 2


@kernel
def line(y, first, stop):
    """Least-squares slope of ln(y[t]) over t in [first, stop), its standard error, and the points used (y > 0)."""
    n, mean_t, mean_y = 0, 0.0, 0.0
    for t in range(first, stop):
        if y[t] > 0.0:
            n += 1
            mean_t += t
            mean_y += np.log(y[t])
    if n < 3:
        return np.nan, np.nan, n
    mean_t /= n
    mean_y /= n
    tt, ty, yy = 0.0, 0.0, 0.0
    for t in range(first, stop):
        if y[t] > 0.0:
            dt, dy = t - mean_t, np.log(y[t]) - mean_y
            tt += dt * dt
            ty += dt * dy
            yy += dy * dy
    slope = ty / tt
    return slope, np.sqrt(max(yy - slope * ty, 0.0) / (n - 2) / tt), n


@kernel
def contraction_regime(steps, n_steps, least_floor, floor_factor, min_points):
    """Fit the geometric decay of each row of step norms before its floor.

    Args:
        steps: (n, T - 1) step norms.
        n_steps: (n,) step norms to use.
        least_floor: (n,) what the number format can resolve.
        floor_factor: steps above this many floors belong to the regime.
        min_points: fewest points to fit.

    Returns:
        slope of ln(step) (n,), floor (n,; NaN where none was reached), regime length (n,), state (n,): FITTED,
        TOO_FEW, or STILL_FALLING (the decay is not over, and not geometric or less than `floor_factor` in all).
    """
    n = len(steps)
    slopes, floors = np.full(n, np.nan), np.full(n, np.nan)
    regime, state = np.zeros(n, dtype=np.int64), np.full(n, TOO_FEW, dtype=np.int64)
    for o in range(n):
        m = n_steps[o]
        if m < min_points:
            continue
        y = steps[o, :m]
        quarter = m - max(m // 4, 1)
        floor = max(np.median(y[quarter:]), least_floor[o])
        length = 0
        for t in range(m):
            if y[t] > floor_factor * floor:
                length = t + 1
        early, _, _ = line(y, 0, max(length, m // 2))
        late, error, late_points = line(y, quarter, m)
        # a floor is flat: a last quarter that falls beyond doubt, above what the format can resolve, is none
        falling = late_points >= 8 and late < -6.0 * error and floor > floor_factor * least_floor[o]
        if falling and late <= 0.5 * early and early < 0.0:
            floor, length = np.nan, m
        elif falling and (m - quarter) * late < -0.1:
            state[o] = STILL_FALLING
            continue
        floors[o], regime[o] = floor, length
        slope, _, points = line(y, 0, length)
        if points >= min_points:
            slopes[o], state[o] = slope, FITTED
            if np.isnan(floor) and -slope * m < np.log(floor_factor):
                state[o] = STILL_FALLING  # too little shrinking to tell contraction from a slow drift
    return slopes, floors, regime, state
