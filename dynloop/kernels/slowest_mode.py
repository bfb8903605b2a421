"""The slowest mode of an orbit, with its uncertainty."""

import numpy as np

from dynloop.kernels import kernel
from dynloop.kernels.decay_modes import (
    ALTERNATING,
    MOST_COLUMNS,
    PAIR,
    REAL,
    SLOPES,
    Q,
    centred_products,
    curvature,
    delayed_products,
    fit,
    modes_of,
    n_columns,
    products_from,
    project,
    shift_multipliers,
)
from dynloop.kernels.dense import add, dot, inverse, leading, times
from dynloop.kernels.mode_evidence import (
    BEGIN,
    BLUR,
    CANDIDATES,
    CHANNELS,
    DECAY,
    ERROR,
    EXCESS,
    FREEDOM,
    INSIDE,
    NOISE,
    ODDS,
    ROUNDING,
    UNSEEN,
    best_addition,
    energies,
    fitted_part,
    left_product,
    log_evidence,
    mode_rows,
    noise_channels,
    noise_edge,
    odds_of,
    rank_above,
    shared_rounding,
)

SCORES = 8  # leading principal components on which the rates are searched
COLUMNS = 6  # modes to fit at most; a pair counts twice
FASTEST = 5.0  # decay -ln rho of a mode, at most
SWEEPS, ENOUGH = 8, 1e-3  # of a fit; it ends when the squares fall by so little of the noise
PRUNED_BELOW, GROWN_ABOVE = 3.5, 2.5  # normal deviates of the energy of a mode beyond what noise gives
FEW_CHANNELS = 8.0  # in so few dimensions a second alternative model is worth its time
CROWDED = 0.5  # difference of the decays of the two slowest modes
SPLIT = 1.25  # decays of two modes in the place of one, over that of the one
NO_MORE = -1.5  # a mode that adds so little is no alternative, either
PRIOR_CHANNELS = 16.0  # weight of white noise's share along the slopes, against the one seen across channels
PRIOR_FREEDOM = 4.0  # weight of the noise of all directions, against the one seen in the direction of the mode
LEAST_SHARE = 0.25  # of white noise's variance, at least
PRODUCT_ERROR = 2.0  # of a float32 product of states, over the blur: measured between parallel states it is 1.2, and
#                      not independent from state to state
EXPLAINED = 0.6  # share, in logarithms, of the noise beyond white that a larger model may explain away. Measured:
#                  right is 1 where modes are at right angles, .4 where they have random directions
TOO_EARLY, REACH = 3.0, 1e4  # what is left of early states over that of late ones; first distance over the floor
ANGLE, FIRST, STOP, ENERGY, LEFT, EARLY, AUTOCORRELATION, STATE_NOISE = 0, 1, 2, 3, 4, 5, 6, 7  # of a fit


@kernel
def slowest(kinds, rates):
    """Number of the slowest mode, of its first parameter, and of its first column."""
    at, parameter, column = 0, 0, 0
    p = 0
    for k in range(len(kinds)):
        if k == 0 or rates[k, 0] < rates[at, 0]:
            at, parameter, column = k, p, p  # a pair has two parameters and two columns
        p += 2 if kinds[k] == PAIR else 1
    return at, parameter, column


@kernel
def crowded(rates):
    """Whether the slowest mode has another one close to it: where there are many, the next one is never seen alone."""
    first, second = np.inf, np.inf
    for k in range(len(rates)):
        if rates[k, 0] < first:
            first, second = rates[k, 0], first
        elif rates[k, 0] < second:
            second = rates[k, 0]
    return second - first < CROWDED


@kernel
def inside_loop(products, kinds, rates, free, c, profile, rows, small, law):
    """Are errors made inside the loop, so that the slowest mode carries them on, or only in the record?

    The coordinate of the slowest mode then follows x[t + 1] = lambda x[t] + error; both laws are compared by their
    restricted likelihood. Returns the log odds of "inside"; the variance of the noise in the direction of the mode, if
    it is white; the variance of its part along the slopes of that mode, if it is carried on; and the degrees of freedom
    of the white one. Both variances lean on the one of all directions, as on PRIOR_FREEDOM degrees of freedom more.
    """
    n = len(products)
    at, _, column = slowest(kinds, rates)
    pair = kinds[at] == PAIR
    m, p = 2 if pair else 1, c + 1
    all_rows, _, _ = mode_rows(c, rows, small)
    own = all_rows[column + 1:column + 1 + m]
    moved = times(own, products)
    size = np.empty((m, m))
    for i in range(m):
        for j in range(m):
            size[i, j] = dot(moved[i], own[j])
    back = inverse(size)
    coordinate = np.zeros((m, n))
    for i in range(m):
        for j in range(m):
            add(back[i, j], moved[j], coordinate[i])
    rho = np.exp(-rates[at, 0])
    re, im = -rho if kinds[at] == ALTERNATING else rho, 0.0
    if pair:
        re, im = rho * np.cos(rates[at, 1]), rho * np.sin(rates[at, 1])
    white = 0.0
    rest = np.empty(n)
    for i in range(m):
        for t in range(n):
            rest[t] = coordinate[i, t]
        for _ in range(2):
            for j in range(p):
                add(-dot(rows[Q, j], rest), rows[Q, j], rest)
        white += dot(rest, rest)
    design, target = np.zeros((m * p, m * n)), np.empty(m * n)
    for i in range(p):
        for t in range(n):
            before = rows[Q, i, t - 1] if t > 0 else 0.0
            design[i, t] = rows[Q, i, t] - re * before
            if pair:
                design[i, n + t] = -im * before
                design[p + i, n + t] = rows[Q, i, t] - re * before
                design[p + i, t] = im * before
    for t in range(n):
        a = coordinate[0, t - 1] if t > 0 else 0.0
        b = coordinate[m - 1, t - 1] if t > 0 and pair else 0.0
        target[t] = coordinate[0, t] - (re * a - im * b)
        if pair:
            target[n + t] = coordinate[1, t] - (im * a + re * b)
    volume = 0.0
    for i in range(m * p):
        for _ in range(2):
            for j in range(i):
                add(-dot(design[j], design[i]), design[j], design[i])
        length = dot(design[i], design[i])
        if not length > 1e-300:
            continue  # the constant of a known limit
        volume += np.log(length)
        for t in range(m * n):
            design[i, t] /= np.sqrt(length)
        add(-dot(design[i], target), design[i], target)
    innovations = dot(target, target)
    freedom = m * (n - free - c)
    odds = 0.5 * freedom * (np.log(max(white, 1e-300)) - np.log(max(innovations, 1e-300))) - 0.5 * volume
    scale = 0.0
    for i in range(m):
        scale += size[i, i] / m
    prior = PRIOR_FREEDOM * law[NOISE]
    variance = (innovations * scale + prior) / (freedom + PRIOR_FREEDOM)
    alone = max(freedom - m, 1.0)  # the slopes have taken their part
    carried, a, b = 0.0, 0.0, 0.0
    for t in range(n - 1, -1, -1):
        if pair:
            a, b = rows[SLOPES, column, t] + re * a - im * b, -rows[SLOPES, column + 1, t] + re * b + im * a
        else:
            a = rows[SLOPES, column, t] + re * a
        carried += (a * a + b * b) * profile[t]
    return odds, (white * scale + prior) / (alone + PRIOR_FREEDOM), variance * carried, alone


@kernel
def noise_profile(products, c, rows, small):
    """Energy of what the fit leaves of each state (n,), over its mean; ones if nothing is left."""
    n = len(products)
    profile = np.ones(n)
    total = 0.0
    for t in range(n):
        profile[t] = max(left_product(products, c, rows, small, t, t), 0.0)
        total += profile[t] / n
    for t in range(n):
        profile[t] = profile[t] / total if total > 0.0 else 1.0
    return profile


@kernel
def weighted(vector, away):
    """Sum of squares of a vector (n,), each times the squared distance of its state (n,)."""
    total = 0.0
    for t in range(len(vector)):
        total += vector[t] * vector[t] * away[t]
    return total


@kernel
def estimate(products, kinds, rates, free, scores, rows, small, away, larger, law, found):
    """Decay of the slowest mode, its standard error and degrees of freedom, written to found (5,).

    The error is that of the product of what the fit leaves in the direction of the mode with the slopes of its powers.
    How strong the noise is, is seen in that direction; how it is spread over time, in all directions (with few of them,
    it is taken for white). That is right for noise that is correlated in time and for modes that were left out, too.
    To the latter the mixture over larger models gives room as well: with the estimate of a `larger` model (5,), empty
    if there is none, the noise beyond white counts less. Added is what rounding of the products does: `away` (n,) are
    the states' squared distances from the one they were centred on.
    Returns the columns and the energy left.
    """
    n, length = len(products), 2 * len(kinds) + 1
    terms, signs = np.zeros((length, 2, 2), dtype=np.int64), np.zeros((length, 2))
    normal, gradient = np.zeros((length, length)), np.zeros(length)
    c, _ = project(kinds, rates, free, scores, rows, small)
    left = max(fitted_part(products, c, rows, small), law[ROUNDING] * (n - free - c))
    p, own, size = curvature(kinds, c, scores, rows, small, terms, signs, normal, gradient)
    law[NOISE] = left / max(law[CHANNELS] * (n - free - c) - p, 1.0)
    at, parameter, column = slowest(kinds, rates)
    along = times(rows[SLOPES, :c], products)
    profile = noise_profile(products, c, rows, small)
    odds, own_noise, carried, freedom = inside_loop(products, kinds, rates, free, c, profile, rows, small, law)
    freedom *= min((1.0 + 2.0 / law[CHANNELS]) * n / dot(profile, profile), 1.0)  # as many states carry the noise
    seen = max(law[CHANNELS] - c, 0.0)
    share = own_noise / (seen + PRIOR_CHANNELS)
    blurred = law[BLUR] / max(away.max(), 1e-300)
    level, unsure = own[column, column] * left / (n - free - c), blurred * weighted(rows[SLOPES, column], away)
    trust = level / max(level + unsure, 1e-300)  # where rounded products hide the noise, it is taken for white
    spread = np.empty((c, c))
    for i in range(c):
        for j in range(c):
            spread[i, j] = share * (trust * seen * dot(along[i], rows[SLOPES, j]) * (n - free - c) / max(left, 1e-300)
                                    + (PRIOR_CHANNELS + (1.0 - trust) * seen) * own[i, j])
    for i in range(p):
        normal[i, i] = normal[i, i] * (1.0 + 1e-12) + 1e-300
    back = inverse(normal[:p, :p])
    variance = 0.0
    for i in range(p):
        for j in range(p):
            middle = 0.0
            for x in range(2):
                for y in range(2):
                    middle += (signs[i, x] * signs[j, y] * spread[terms[i, x, 0], terms[j, y, 0]]
                               * size[terms[i, x, 1], terms[j, y, 1]])
            variance += back[parameter, i] * middle * back[parameter, j]
    plain = spread[column, column] + (spread[column + 1, column + 1] if kinds[at] == PAIR else 0.0)
    against = np.exp(-min(max(odds, -50.0), 50.0)) * (1.0 - law[INSIDE]) / law[INSIDE]
    factor = 1.0 + (max(carried / max(plain, 1e-300), 1.0) - 1.0) / (1.0 + against)
    white = own_noise * back[parameter, parameter]
    excess = max(variance / max(white, 1e-300), LEAST_SHARE)
    if larger[EXCESS] > 0.0:  # what it explains is counted by its odds, not as noise
        excess *= min(larger[EXCESS] / excess, 1.0) ** (EXPLAINED * larger[ODDS])
    variance = white * excess
    found[EXCESS] = excess
    coefficient_rows, _, _ = mode_rows(c, rows, small)
    exact = ((PRODUCT_ERROR * blurred) ** 2 * weighted(rows[SLOPES, column], away)
             * weighted(coefficient_rows[column + 1], away) * back[parameter, parameter]
             / max(own[column, column] * size[column, column], 1e-300))
    found[DECAY] = rates[at, 0]
    found[ERROR] = np.sqrt(variance * factor + exact)
    found[FREEDOM] = freedom + 0.5 * PRIOR_FREEDOM
    return c, left


@kernel
def changed(kinds, rates, without, candidate):
    """The modes without one of them (none if -1), and with a real one from CANDIDATES (none if -1)."""
    size = len(kinds) - (1 if without >= 0 else 0) + (1 if candidate >= 0 else 0)
    new_kinds, new_rates = np.full(size, REAL), np.zeros((size, 2))
    i = 0
    for k in range(len(kinds)):
        if k != without:
            new_kinds[i], new_rates[i, 0], new_rates[i, 1] = kinds[k], rates[k, 0], rates[k, 1]
            i += 1
    if candidate >= 0:
        new_rates[i, 0] = -np.log(CANDIDATES[candidate])
    return new_kinds, new_rates


@kernel
def split(kinds, rates):
    """The modes, with two around the slowest one instead of it."""
    at = slowest(kinds, rates)[0]
    new_kinds, new_rates = changed(kinds, rates, -1, 0)
    new_kinds[len(kinds)], new_rates[len(kinds), 1] = kinds[at], rates[at, 1]
    new_rates[len(kinds), 0] = min(SPLIT * rates[at, 0], FASTEST)
    new_rates[at, 0] = rates[at, 0] / SPLIT
    return new_kinds, new_rates


@kernel
def leading_scores(products):
    """Principal components of the orbit (m, n), weighted for the search of rates, and the strong ones as they are.

    The weights are the best ones beside white noise (Viberg, Ottersten and Kailath 1991).
    """
    n = len(products)
    values, vectors = leading(products, min(SCORES, n - 2), 6)
    mean, edge = noise_edge(values, products, 0)
    scores = np.zeros((rank_above(values, 1.05 * edge, SCORES), n))
    strong = np.zeros((rank_above(values, 2.0 * edge, SCORES), n))
    for i in range(len(scores)):
        root = np.sqrt(max(values[i], 1e-300))
        add(max(values[i] - mean, 0.0) / root, vectors[i], scores[i])
        if i < len(strong):
            add(root, vectors[i], strong[i])
    return scores, strong, vectors


@kernel
def first_modes(products, scores, vectors, columns, free, rows, small):
    """Modes to begin with: eigenvalues of a map fitted to the scores, or to delayed states, whichever fit better."""
    n = len(products)
    least, delays = 0.1 / n, max(n // 3, 2)
    kinds, rates = modes_of(shift_multipliers(vectors, min(len(scores), columns)), least, FASTEST)
    delayed = delayed_products(products, delays)
    values, vectors = leading(delayed, min(SCORES, len(delayed) - 2), 3)
    _, edge = noise_edge(values, delayed, delays)
    others, other_rates = modes_of(shift_multipliers(vectors, rank_above(values, 1.2 * edge, columns)), least, FASTEST)
    _, left = project(kinds, rates, free, scores, rows, small)
    _, other_left = project(others, other_rates, free, scores, rows, small)
    if other_left <= left:
        return others, other_rates
    return kinds, rates


@kernel
def refit(products, kinds, rates, free, scores, strong, shared, rows, small, law, found):
    """Fit the rates, and see how far each mode rises above the noise: rates, columns, energy left, weakest mode."""
    n = len(products)
    rates = fit(kinds, rates, free, scores, 0.1 / n, FASTEST, SWEEPS, ENOUGH * law[NOISE], rows, small)
    c = n_columns(kinds)
    left = fitted_part(products, c, rows, small)
    if law[CHANNELS] == 0.0:
        law[CHANNELS] = noise_channels(products, c, rows, small)
    law[NOISE] = left / max(law[CHANNELS] * (n - free - c) - c, 1.0)
    low, at = energies(kinds, scores, strong, c, rows, small, shared, law, found)
    return rates, c, left, low, at


@kernel
def describe_rest(products, free, c, rows, small, about):
    """What the fit leaves of early states over late ones, and the correlation of successive states, into about."""
    n = len(products)
    early, late, total, together, lost = 0.0, 0.0, 0.0, 0.0, 0.0
    for t in range(n):
        own = left_product(products, c, rows, small, t, t)
        total += own
        if t < n // 3:
            early += own
        elif t >= n - n // 3:
            late += own
        if t > 0:
            together += left_product(products, c, rows, small, t, t - 1)
            for i in range(c + 1):
                lost -= rows[Q, i, t] * rows[Q, i, t - 1]
    about[EARLY] = early / max(late, 1e-300)
    about[AUTOCORRELATION] = together / max(total, 1e-300) - lost / (n - free - c)


@kernel
def fit_stretch(squared, norms, away, first, stop, free, law, estimates, about):
    """Modes of the states first to stop of one orbit, squared distances (T, T) and norms (T,).

    `law` gives ROUNDING, BLUR, BEGIN and INSIDE; for the rest see `slowest_modes`. Fills estimates (3, 5), of the model
    chosen and of up to two larger ones, and about (8,).
    """
    n = stop - first
    products = centred_products(squared, first, stop) if free else products_from(squared, norms, first, stop)
    columns = max(min(COLUMNS, n - 5), 1)
    scores, strong, vectors = leading_scores(products)
    rows = np.empty((3, MOST_COLUMNS, n))
    small = np.zeros((3, MOST_COLUMNS, MOST_COLUMNS))
    shared, found = shared_rounding(squared, first, stop, law[ROUNDING]), np.zeros(MOST_COLUMNS)
    kinds, rates = first_modes(products, scores, vectors, columns, free, rows, small)
    law[CHANNELS], law[NOISE] = 0.0, 0.0
    rates, c, left, low, weak = refit(products, kinds, rates, free, scores, strong, shared, rows, small, law, found)
    z, candidate, growing = -9.0, -1, False
    while True:
        if not growing:
            growing = len(kinds) == 1 or low >= PRUNED_BELOW
        if growing:
            if c >= columns:
                break
            candidate, z = best_addition(products, strong, c, rows, shared, law)
            if z < GROWN_ABOVE:
                break
        new, start = changed(kinds, rates, -1 if growing else weak, candidate)
        noise = law[NOISE]
        start, new_c, new_left, low, weak = refit(products, new, start, free, scores, strong, shared, rows, small, law,
                                                  found)
        if growing and (low < GROWN_ABOVE or not new_left < left):
            law[NOISE] = noise
            break
        kinds, rates, c, left = new, start, new_c, new_left
    estimates[:] = 0.0
    noise, model, at_rates, at_c, at_left = law[NOISE], kinds, rates, c, left
    close = crowded(rates)
    for k in range(1, 3 if close or law[CHANNELS] <= FEW_CHANNELS else 2):
        if at_c >= (min(COLUMNS + 2, max(n - 5, 1)) if close else columns) or (k == 1 and z < NO_MORE and not close):
            break
        if k == 2:
            candidate, z = best_addition(products, strong, at_c, rows, shared, law)
        before_noise, before, before_rates = law[NOISE], model, at_rates
        for attempt in range(2):
            if attempt == 0:
                model, at_rates = changed(before, before_rates, -1, candidate)
            else:
                model, at_rates = split(before, before_rates)
            at_rates = fit(model, at_rates, free, scores, 0.1 / n, FASTEST, SWEEPS // 2, ENOUGH * law[NOISE], rows,
                           small)
            new_c, new_left = estimate(products, model, at_rates, free, scores, rows, small, away, estimates[0], law,
                                       estimates[k])
            evidence = log_evidence(at_c, new_c, max(at_left - new_left, 0.0), before_noise, rows, small, law)
            estimates[k, ODDS] = odds_of(evidence, z, estimates[k], rates[slowest(kinds, rates)[0], 0])
            if not close or estimates[k, ODDS] > UNSEEN:
                break
        if k == 2:
            estimates[2, ODDS] *= estimates[1, ODDS]
        at_c, at_left = new_c, new_left
    law[NOISE] = noise
    project(kinds, rates, free, scores, rows, small)
    fitted_part(products, c, rows, small)
    energies(kinds, scores, strong, c, rows, small, shared, law, found)
    estimate(products, kinds, rates, free, scores, rows, small, away, estimates[1], law, estimates[0])
    estimates[0, ODDS] = 1.0
    at = slowest(kinds, rates)[0]
    energy = 0.0
    for t in range(n):
        energy += products[t, t]
    about[ANGLE] = rates[at, 1] if kinds[at] == PAIR else (np.pi if kinds[at] == ALTERNATING else 0.0)
    about[FIRST], about[STOP], about[ENERGY], about[LEFT] = first, stop, found[at], left / max(energy, 1e-300)
    about[STATE_NOISE] = left / (n - free - c)
    describe_rest(products, free, c, rows, small, about)


def middle(values: np.ndarray) -> float:
    """Median of (n,), without NumPy's checks: these cost more than the rest."""
    ordered = np.sort(values)
    return 0.5 * float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2])


def slowest_modes(squared: np.ndarray, norms: np.ndarray, lengths: np.ndarray, limit_is_zero: bool,
                  rounding: np.ndarray, blur: float, inside: np.ndarray, *, far: float = 8.0, margin: int = 4,
                  fewest: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Fit the modes of each orbit and describe the slowest.

    A plain loop over orbits: compiled with all that it calls, it would cost seconds on first use.

    Args:
        squared: (n, T, T) squared distances.
        norms: (n, T) norms of the states.
        lengths: (n,) states to use.
        limit_is_zero: the limit is known to be 0 (as for the difference of two orbits).
        rounding: (n,) squared distance by which the number format moves a state.
        blur: relative error of the squared distances.
        inside: (n,) prior probability that errors are made inside the loop.
        far: states count until they come within this many rounding energies of the limit, in the end;
        margin: and so many more;
        fewest: but at least so many.

    Returns:
        estimates (n, 3, 5), the decay -ln rho of the slowest mode with its standard error and degrees of freedom, in
        the model chosen and in larger ones that may be true, each with its odds against the first; about (n, 8), of
        the fit. See the constants above.
    """
    n = len(squared)
    estimates, about, law = np.zeros((n, 3, 5)), np.zeros((n, 8)), np.zeros(6)
    for o, m in enumerate(lengths):
        if m < fewest:
            continue
        away = norms[o, :m] ** 2 if limit_is_zero else squared[o, m - 1, :m]
        outside = np.flatnonzero(away > far * rounding[o])
        stop = int(min(m, max((outside[-1] + 1 if len(outside) else 0) + margin, fewest)))
        end = m if limit_is_zero else m - 1
        floor = max(middle(away[end - max(m // 8, 1):end]), 4.0 * rounding[o], 1e-30 * away.max(), 1e-300)
        law[ROUNDING], law[INSIDE] = rounding[o], inside[o]
        first = 0
        while True:
            law[BLUR], law[BEGIN] = blur * away[first:stop].max(), away[first]
            fit_stretch(squared[o], norms[o], away[first:stop], first, stop, int(not limit_is_zero), law, estimates[o],
                        about[o])
            reach = np.sqrt(away[first] / floor)
            if about[o, EARLY] < TOO_EARLY or reach < REACH:
                break
            # faster modes than can be fitted, and much to see beyond them: start where they have died out
            target = away[first] / max(10.0, np.sqrt(10.0 * reach / REACH)) ** 2
            below = np.flatnonzero(away[first + 1:stop] <= target)
            start = first + 1 + int(below[0]) if len(below) else stop
            if stop - start < max(fewest, 12):
                break
            first = start
    return estimates, about
