"""The slowest mode of an orbit, with its uncertainty: which modes the noise lets one see, and how surely.

Everything comes from the squared distances within the orbit, so that nothing depends on the dimension; where a number
of independent directions of noise is needed ("channels"), it is estimated from what the fit leaves. What is known of
the noise travels as an array: NOISE, its variance a channel; CHANNELS; ROUNDING, the squared distance by which the
number format moves a state; BLUR, the error of the products; BEGIN, the squared distance of the first state from the
limit; INSIDE, the prior probability that errors are made inside the loop.
"""

import numpy as np

from dynloop.kernels import kernel
from dynloop.kernels.decay_modes import (
    ALTERNATING,
    INNER,
    MOST_COLUMNS,
    MOVED,
    PAIR,
    REAL,
    SLOPES,
    Q,
    R,
    add,
    centred_products,
    curvature,
    delayed_products,
    dot,
    fit,
    inverse,
    leading,
    modes_of,
    n_columns,
    products_from,
    project,
    shift_multipliers,
    times,
)

SCORES = 8  # leading principal components on which the rates are searched
COLUMNS = 6  # modes to fit at most; a pair counts twice
FASTEST = 5.0  # decay -ln rho of a mode, at most
SWEEPS, ENOUGH = 8, 1e-3  # of a fit; it ends when the squares fall by so little of the noise
PRUNED_BELOW, GROWN_ABOVE = 3.5, 2.5  # normal deviates of the energy of a mode beyond what noise gives
NO_MORE = -1.5  # a mode that adds so little is no alternative, either
FEW_CHANNELS = 8.0  # in so few dimensions a second alternative model is worth its time
FORMAT_NOISE = 1400.0  # noise of up to so many rounding energies a state is that of the number format, and not white:
SEEN, SHARE = 8.0, 3e-3  # a mode then begins at so many norms of the noise of one state, and with such a share of all
PRIOR_CHANNELS = 16.0  # weight of white noise's share along the slopes, against the one seen across channels
PRIOR_FREEDOM = 4.0  # weight of the noise of all directions, against the one seen in the direction of the mode
TOO_EARLY, REACH = 3.0, 1e4  # what is left of early states over that of late ones; first distance over the floor
CANDIDATES = np.array([.03, .1, .2, .3, .4, .5, .6, .7, .78, .84, .89, .93, .96, .98, .99])  # for one more mode
NOISE, CHANNELS, ROUNDING, BLUR, BEGIN, INSIDE = 0, 1, 2, 3, 4, 5  # what is known of the noise
DECAY, ERROR, FREEDOM, ODDS = 0, 1, 2, 3  # of an estimate
ANGLE, FIRST, STOP, ENERGY, LEFT, EARLY, AUTOCORRELATION, STATE_NOISE = 0, 1, 2, 3, 4, 5, 6, 7  # of a fit


@kernel
def deviate(value, freedom):
    """Normal deviate of a chi-squared value (Wilson and Hilferty 1931)."""
    return ((max(value, 0.0) / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))


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
def fitted_part(products, c, rows, small):
    """Fill MOVED, Q @ products (c + 1, n), and INNER, that @ Q.T; returns the energy that the fit leaves."""
    n = len(products)
    some = times(rows[Q, :c + 1], products)
    left = 0.0
    for t in range(n):
        left += products[t, t]
    for i in range(c + 1):
        for t in range(n):
            rows[MOVED, i, t] = some[i, t]
        for j in range(i + 1):
            small[INNER, i, j] = dot(some[i], rows[Q, j])
            small[INNER, j, i] = small[INNER, i, j]
        left -= small[INNER, i, i]
    return max(left, 0.0)


@kernel
def left_product(products, c, rows, small, s, t):
    """Product of what the fit leaves of the states s and t."""
    value = products[s, t]
    for i in range(c + 1):
        value -= rows[Q, i, s] * rows[MOVED, i, t] + rows[MOVED, i, s] * rows[Q, i, t]
        for j in range(c + 1):
            value += rows[Q, i, s] * small[INNER, i, j] * rows[Q, j, t]
    return value


@kernel
def noise_channels(products, c, rows, small):
    """How many independent directions the noise has, from the cosines between what the fit leaves of late states.

    For noise of D equal directions the squared cosine of two states has mean 1 / D; that the fit has taken something
    from both is accounted for.
    """
    n = len(products)
    first = n // 3 if n >= 24 else 0
    stride = max(1, (n - first) // 32)
    apart = 8 if n - first >= 64 else (2 if n - first >= 16 else 1)
    squares, sizes, both, fitted = 0.0, 0.0, 0.0, 0.0
    own, kept = np.empty(n), np.empty(n)
    for s in range(first, n, stride):
        own[s], kept[s] = left_product(products, c, rows, small, s, s), 1.0
        for i in range(c + 1):
            kept[s] -= rows[Q, i, s] * rows[Q, i, s]
        for t in range(first, s, stride):
            if s - t >= apart:
                value, shared = left_product(products, c, rows, small, s, t), 0.0
                for i in range(c + 1):
                    shared -= rows[Q, i, s] * rows[Q, i, t]
                squares += value * value
                sizes += own[s] * own[t]
                both += kept[s] * kept[t]
                fitted += shared * shared
    if not (sizes > 0.0 and both > 0.0):
        return 1.0
    ratio = squares / sizes
    excess = ratio * both - fitted
    if not excess > 1e-6 * both:
        return 1e6
    return min(max((both + fitted - 2.0 * ratio * fitted) / excess, 1.0), 1e6)


@kernel
def noise_edge(values, products, delays):
    """Mean and largest eigenvalue of white noise in (delayed) products (n, n) with these leading eigenvalues."""
    n = len(products)
    energy, tail, squares = 0.0, 0.0, 0.0
    for i in range(n):
        energy += products[i, i]
        squares += dot(products[i], products[i])
    tail = energy
    for value in values:
        tail -= value
        squares -= value * value
    rest = n - 1 - len(values)
    if not (rest > 0 and tail > 1e-12 * energy):
        return 0.0, 0.0
    mean, ratio = tail / rest, max(squares, 0.0) / (tail * tail)
    channels = (rest + 1 - 2 * ratio) / max(ratio * rest - 1, 1e-6) if ratio * rest > 1 else 1e6
    return mean, mean * (1 + np.sqrt((n + delays) / max(channels, 1.0))) ** 2


@kernel
def rank_above(values, edge, most):
    """How many eigenvalues, largest first, lie above an edge and above rounding; at least 1."""
    rank = 0
    while rank < min(most, len(values)) and values[rank] > edge and values[rank] > 1e-14 * values[0]:
        rank += 1
    return max(rank, 1)


@kernel
def shared_rounding(squared, first, stop, rounding):
    """How many states share the rounding error of each (n,), 1 or more: errors repeat where states hardly move."""
    shared = np.ones(stop - first)
    for i in range(stop - first):
        for j in range(i):
            apart = squared[first + i, first + j] / (4.0 * rounding) if rounding > 0.0 else np.inf
            if apart < 12.0:
                alike = np.exp(-apart)
                shared[i] += alike
                shared[j] += alike
    return 1.3 * shared  # the mean distance hides features that move less


@kernel
def noise_along(vector, shared, law):
    """Variance a channel of the noise along a unit vector over time (n,)."""
    total = 0.0
    for t in range(len(vector)):
        total += vector[t] * vector[t] * shared[t]
    return max(max(law[NOISE], law[ROUNDING] * total / law[CHANNELS]) + law[BLUR] / law[CHANNELS], 1e-300)


@kernel
def best_addition(products, strong, c, rows, shared, law):
    """The real mode that would take up most of what is left: its number in CANDIDATES, and the deviate of its energy.

    The energy is looked at in all directions and in the strong ones (m, n) alone, where few channels hide less.
    """
    n = len(products)
    tried = np.empty((len(CANDIDATES), n))
    for k in range(len(CANDIDATES)):
        value = 1.0
        for t in range(n):
            tried[k, t] = value
            value *= CANDIDATES[k]
        before = dot(tried[k], tried[k])
        for _ in range(2):
            for i in range(c + 1):
                add(-dot(rows[Q, i], tried[k]), rows[Q, i], tried[k])
        own = dot(tried[k], tried[k])
        scale = 1.0 / np.sqrt(own) if own > 1e-12 * before else 0.0
        for t in range(n):
            tried[k, t] *= scale
    moved = times(tried, products)
    best, at = -1e300, 0
    for k in range(len(CANDIDATES)):
        along = noise_along(tried[k], shared, law)
        energy = 0.0
        for i in range(len(strong)):
            energy += dot(strong[i], tried[k]) ** 2
        z = max(deviate(dot(moved[k], tried[k]) / along, law[CHANNELS] + 1.0),
                deviate(energy / along, len(strong) + 1.0))
        if z > best:
            best, at = z, k
    return at, best


@kernel
def mode_rows(c, rows, small):
    """Rows (c + 1, n) that give the coefficients of the constant and of the columns, and their products."""
    back = inverse(small[R, :c + 1, :c + 1])
    n = rows.shape[2]
    found, sizes = np.zeros((c + 1, n)), np.zeros((c + 1, c + 1))
    for i in range(c + 1):
        for j in range(i, c + 1):
            add(back[i, j], rows[Q, j], found[i])
            for k in range(c + 1):
                sizes[i, k] += back[i, j] * back[k, j]
    return found, sizes, back


@kernel
def energies(kinds, scores, strong, c, rows, small, shared, law, found):
    """Deviate of each mode's energy beyond the other modes, written to found; the least, and where.

    What the rates of all modes could take over if they moved is no energy of that mode. The deviate is at most 0 for a
    mode that does not rise above noise of the number format. Call it after `fit`: it makes the slopes orthogonal.
    """
    own_rows, sizes, back = mode_rows(c, rows, small)
    turned = np.empty((c + 1, c))
    for i in range(c + 1):
        for j in range(c):
            turned[i, j] = dot(own_rows[i], rows[SLOPES, j])
    length = 2 * len(kinds) + 1
    terms, signs = np.zeros((length, 2, 2), dtype=np.int64), np.zeros((length, 2))
    normal, gradient = np.zeros((length, length)), np.zeros(length)
    p, _, _ = curvature(kinds, c, scores, rows, small, terms, signs, normal, gradient)
    weights = np.empty((c + 1, len(strong)))  # the columns' coefficients in the strong directions
    for i in range(c + 1):
        for x in range(len(strong)):
            weights[i, x] = dot(own_rows[i], strong[x])
    unit = np.empty(len(shared))
    low, at, column = 1e300, 0, 1
    for k in range(len(kinds)):
        m = 2 if kinds[k] == PAIR else 1
        own, power = np.empty((m, m)), np.zeros((m, m))
        for i in range(m):
            for j in range(m):
                own[i, j] = sizes[column + i, column + j]
                for x in range(c + 1):
                    for y in range(c + 1):
                        power[i, j] += back[column + i, x] * small[INNER, x, y] * back[column + j, y]
        own = inverse(own)
        moves, around = np.zeros((p, m, len(strong))), np.zeros((p, m, len(strong)))
        for i in range(p):  # of the coefficients, when rate i moves
            for j in range(m):
                for y in range(2):
                    share = signs[i, y] * turned[column + j, terms[i, y, 0]]
                    for x in range(len(strong)):
                        moves[i, j, x] += share * weights[1 + terms[i, y, 1], x]
            for j in range(m):
                for y in range(m):
                    add(own[j, y], moves[i, y], around[i, j])
        joint, towards = np.empty((p, p)), np.zeros(p)
        for i in range(p):
            for j in range(p):
                joint[i, j] = normal[i, j] + (1e-12 * normal[i, i] + 1e-300 if i == j else 0.0)
                for y in range(m):
                    joint[i, j] += dot(around[i, y], moves[j, y])
            for y in range(m):
                towards[i] += dot(around[i, y], weights[column + y])
        joint = inverse(joint)
        energy, strongly, along = 0.0, 0.0, 0.0
        strength, state = 0.0, law[CHANNELS] * law[NOISE]
        for i in range(m):
            for j in range(m):
                energy += own[i, j] * power[j, i]
                strongly += own[i, j] * dot(weights[column + i], weights[column + j])
            size = sizes[column + i, column + i]
            for t in range(len(shared)):
                unit[t] = own_rows[column + i, t] / np.sqrt(size)
            along += noise_along(unit, shared, law) / m
            strength += power[i, i] - size * state
        taken = 0.0
        for i in range(p):
            for j in range(p):
                taken += towards[i] * joint[i, j] * towards[j]
        found[k] = max(deviate((energy - taken) / along, m * law[CHANNELS] + 1.0),
                       deviate((strongly - taken) / along, m * len(strong) + 1.0))
        state += law[ROUNDING] + law[BLUR]
        if state < FORMAT_NOISE * law[ROUNDING] and strength < max(SEEN**2 * state, SHARE**2 * law[BEGIN]):
            found[k] = min(found[k], 0.0)
        if found[k] < low:
            low, at = found[k], k
        column += m
    return low, at


@kernel
def inside_loop(products, kinds, rates, free, c, rows, small, law):
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
        carried += a * a + b * b
    return odds, (white * scale + prior) / (alone + PRIOR_FREEDOM), variance * carried, alone


@kernel
def estimate(products, kinds, rates, free, scores, rows, small, law, found):
    """Decay of the slowest mode, its standard error and degrees of freedom, written to found (4,).

    The error is that of the product of what the fit leaves in the direction of the mode with the slopes of its powers.
    How strong the noise is, is seen in that direction; how it is spread over time, in all directions (with few of them,
    it is taken for white). That is right for noise that is correlated in time and for modes that were left out, too.
    Returns the columns and the energy left.
    """
    n, length = len(products), 2 * len(kinds) + 1
    terms, signs = np.zeros((length, 2, 2), dtype=np.int64), np.zeros((length, 2))
    normal, gradient = np.zeros((length, length)), np.zeros(length)
    c, _ = project(kinds, rates, free, scores, rows, small)
    left = fitted_part(products, c, rows, small)
    p, own, size = curvature(kinds, c, scores, rows, small, terms, signs, normal, gradient)
    law[NOISE] = left / max(law[CHANNELS] * (n - free - c) - p, 1.0)
    at, parameter, column = slowest(kinds, rates)
    along = times(rows[SLOPES, :c], products)
    odds, own_noise, carried, freedom = inside_loop(products, kinds, rates, free, c, rows, small, law)
    seen = max(law[CHANNELS] - c, 0.0)
    share = own_noise / (seen + PRIOR_CHANNELS)
    spread = np.empty((c, c))
    for i in range(c):
        for j in range(c):
            spread[i, j] = share * (seen * dot(along[i], rows[SLOPES, j]) * (n - free - c) / max(left, 1e-300)
                                    + PRIOR_CHANNELS * own[i, j])
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
    exact = (0.2 * law[BLUR]) ** 2 / max(own[column, column] * size[column, column], 1e-300)
    found[DECAY] = rates[at, 0]
    found[ERROR] = np.sqrt(max(variance, 0.0) * factor + exact)
    found[FREEDOM] = freedom + 0.5 * PRIOR_FREEDOM
    return c, left


@kernel
def log_evidence(smaller, larger, gained, noise, rows, small, law):
    """Log Bayes factor of a model of `larger` columns, fitted, against one of `smaller` that leaves more energy.

    The added mode is as strong as the whole orbit a priori; where it could not be seen even so, the factor is 1.
    """
    _, sizes, _ = mode_rows(larger, rows, small)
    worst = 0.0
    for i in range(1, larger + 1):
        worst = max(worst, sizes[i, i])
    channels = law[CHANNELS]
    level = max(max(noise, law[ROUNDING] / channels) + law[BLUR] / channels, 1e-300)
    signal = law[BEGIN] / channels / max(level * worst, 1e-300)
    return (0.5 * gained / level * signal / (1.0 + signal)
            - 0.5 * channels * (larger - smaller) * np.log(1.0 + signal))


@kernel
def odds_of(evidence, z, found, first_decay):
    """Odds of a larger model: by its evidence, or by the deviate of what it adds if it is another view of one decay."""
    odds = 3.0 * np.exp(min(evidence, 50.0))
    if found[DECAY] > 0.6 * first_decay and found[ERROR] < 0.5 * found[DECAY]:
        chance = 0.5 * (1.0 - np.tanh(0.7978845608 * (z + 0.044715 * z**3)))  # of a normal deviate above z
        odds = max(odds, 0.05 / max(1.0 - (1.0 - chance) ** 3, 1e-9))
    return min(odds, 1.0) if odds > 0.0 else 0.0


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
def fit_stretch(squared, norms, first, stop, free, law, estimates, about):
    """Modes of the states first to stop of one orbit, squared distances (T, T) and norms (T,).

    `law` gives ROUNDING, BLUR, BEGIN and INSIDE; for the rest see `slowest_modes`. Fills estimates (3, 4), of the model
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
    for k in range(1, 3 if law[CHANNELS] <= FEW_CHANNELS else 2):
        if at_c >= columns or (k == 1 and z < NO_MORE):
            break
        if k == 2:
            candidate, z = best_addition(products, strong, at_c, rows, shared, law)
        model, at_rates = changed(model, at_rates, -1, candidate)
        at_rates = fit(model, at_rates, free, scores, 0.1 / n, FASTEST, SWEEPS // 2, ENOUGH * law[NOISE], rows, small)
        before_noise = law[NOISE]
        new_c, new_left = estimate(products, model, at_rates, free, scores, rows, small, law, estimates[k])
        evidence = log_evidence(at_c, new_c, max(at_left - new_left, 0.0), before_noise, rows, small, law)
        estimates[k, ODDS] = odds_of(evidence, z, estimates[k], rates[slowest(kinds, rates)[0], 0])
        if k == 2:
            estimates[2, ODDS] *= estimates[1, ODDS]
        at_c, at_left = new_c, new_left
    law[NOISE] = noise
    project(kinds, rates, free, scores, rows, small)
    fitted_part(products, c, rows, small)
    energies(kinds, scores, strong, c, rows, small, shared, law, found)
    estimate(products, kinds, rates, free, scores, rows, small, law, estimates[0])
    estimates[0, ODDS] = 1.0
    at = slowest(kinds, rates)[0]
    energy = 0.0
    for t in range(n):
        energy += products[t, t]
    about[ANGLE] = rates[at, 1] if kinds[at] == PAIR else (np.pi if kinds[at] == ALTERNATING else 0.0)
    about[FIRST], about[STOP], about[ENERGY], about[LEFT] = first, stop, found[at], left / max(energy, 1e-300)
    about[STATE_NOISE] = left / (n - free - c)
    describe_rest(products, free, c, rows, small, about)


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
        estimates (n, 3, 4), the decay -ln rho of the slowest mode with its standard error and degrees of freedom, in
        the model chosen and in larger ones that may be true, each with its odds against the first; about (n, 8), of
        the fit. See the constants above.
    """
    n = len(squared)
    estimates, about, law = np.zeros((n, 3, 4)), np.zeros((n, 8)), np.zeros(6)
    for o, m in enumerate(lengths):
        if m < fewest:
            continue
        away = norms[o, :m] ** 2 if limit_is_zero else squared[o, m - 1, :m]
        outside = np.flatnonzero(away > far * rounding[o])
        stop = int(min(m, max((outside[-1] + 1 if len(outside) else 0) + margin, fewest)))
        end = m if limit_is_zero else m - 1
        floor = max(np.median(away[end - max(m // 8, 1):end]), 4.0 * rounding[o], 1e-300)
        law[ROUNDING], law[INSIDE] = rounding[o], inside[o]
        first = 0
        while True:
            law[BLUR], law[BEGIN] = blur * away[first:stop].max(), away[first]
            fit_stretch(squared[o], norms[o], first, stop, int(not limit_is_zero), law, estimates[o], about[o])
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
