"""The contraction regime of a series of step norms: where it ends, and its rate."""

import numpy as np

from dynloop.kernels import kernel

FITTED, TOO_FEW, STILL_FALLING, NOT_SHRINKING = 0, 1, 2, 3
WINDOW = 8  # steps that must mostly lie below the cut before the regime is over


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
def line_doubt(y, first, stop, slope):
    """Standard error of a slope of ln(y[t]) that is no perfect line, and its degrees of freedom.

    The residuals' own correlation makes it larger than that of independent ones; so does a difference between the
    slopes of the first and the second half.
    """
    _, error, n = line(y, first, stop)
    mean_t, mean_y = 0.0, 0.0
    for t in range(first, stop):
        if y[t] > 0.0:
            mean_t += t / n
            mean_y += np.log(y[t]) / n
    together, squares, before = 0.0, 0.0, 0.0
    for t in range(first, stop):
        if y[t] > 0.0:
            rest = np.log(y[t]) - mean_y - slope * (t - mean_t)
            together += rest * before
            squares += rest * rest
            before = rest
    alike = min(max(together / squares, 0.0), 0.95) if squares > 0.0 else 0.0
    half = (first + stop) // 2
    early, _, _ = line(y, first, half)
    late, _, _ = line(y, half, stop)
    bend = 0.25 * (late - early)
    if np.isnan(bend):
        bend = 0.0
    return np.sqrt(error * error * (1.0 + alike) / (1.0 - alike) + bend * bend), max(n - 2, 1)


@kernel
def regime_end(y, cut):
    """Steps before the floor: up to the last one above the cut before they come to lie mostly below it."""
    m = len(y)
    for t in range(m):
        stop = min(t + WINDOW, m)
        if np.median(y[t:stop]) <= cut:
            while stop > 0 and y[stop - 1] <= cut:
                stop -= 1
            return stop
    return m


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
        TOO_FEW, STILL_FALLING (the decay is not over, and not geometric or less than `floor_factor` in all), or
        NOT_SHRINKING (a line that falls less than that, or within four standard errors of level).
    """
    n = len(steps)
    slopes, floors = np.full(n, np.nan), np.full(n, np.nan)
    regime, state = np.zeros(n, dtype=np.int64), np.full(n, TOO_FEW, dtype=np.int64)
    for o in range(n):
        m = n_steps[o]
        if m < min_points:
            continue
        y = steps[o, :m]
        half, quarter, eighth = m // 2, m - max(m // 4, 1), m - max(m // 8, 1)
        floor = max(np.median(y[quarter:]), least_floor[o])
        length = regime_end(y, floor_factor * floor)
        late, error, points = line(y, quarter, m)
        if points >= 8 and late < -6.0 * error and floor > floor_factor * least_floor[o]:
            # the last quarter falls beyond doubt: is there a floor at all?
            early, _, _ = line(y, 0, max(length, half))
            tail, tail_error, tail_points = line(y, eighth, m)
            if tail_points < 6:
                tail, tail_error = late, error
            if early < 0.0 and tail <= 0.5 * early and late <= 0.5 * early:
                floor, length = np.nan, m  # as steep as ever: it was not reached
            elif early < 0.0 and late <= 0.5 * early:  # as steep, but for the very end
                floor = max(np.median(y[m - max(m // 16, 1):]), least_floor[o])
                length = regime_end(y, floor_factor * floor)
            elif tail < -6.0 * tail_error and (m - eighth) * tail < -0.1 and \
                    np.median(y[half:quarter]) > 1.2 * np.median(y[quarter:]):
                state[o] = STILL_FALLING
                continue
            elif np.median(y[half:quarter]) > 1.2 * np.median(y[quarter:]):  # reached within the last quarter
                floor = max(np.median(y[eighth:]), least_floor[o])
                length = regime_end(y, floor_factor * floor)
        floors[o], regime[o] = floor, length
        slope, error, points = line(y, 0, length)
        if points >= min_points:
            slopes[o], state[o] = slope, FITTED
            if -slope * length < np.log(floor_factor):  # too little to tell contraction from a slow drift
                state[o] = STILL_FALLING if np.isnan(floor) else NOT_SHRINKING
            elif slope > -4.0 * error:
                state[o] = NOT_SHRINKING
    return slopes, floors, regime, state
