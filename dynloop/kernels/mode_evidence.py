"""Which modes of a fit rise above the noise, and by how much.

Nothing here depends on the dimension of the states: where a number of independent directions of noise is needed
("channels"), it is estimated from what the fit leaves. What is known of the noise travels as an array: NOISE, its
variance a channel; CHANNELS; ROUNDING, the squared distance by which the number format moves a state; BLUR, the error
of the products; BEGIN, the squared distance of the first state from the limit; INSIDE, the prior probability that
errors are made inside the loop.
"""

import numpy as np

from dynloop.kernels import kernel
from dynloop.kernels.decay_modes import INNER, MOVED, PAIR, SLOPES, Q, R, curvature
from dynloop.kernels.dense import add, dot, inverse, times

FORMAT_NOISE = 1400.0  # noise of up to so many rounding energies a state is that of the number format, and not white:
SEEN, SHARE = 8.0, 3e-3  # a mode then begins at so many norms of the noise of one state, and with such a share of all
CANDIDATES = np.array([.03, .1, .2, .3, .4, .5, .6, .7, .78, .84, .89, .93, .96, .98, .99])  # for one more mode
UNSEEN = 0.05  # odds of one more mode of which nothing is seen
NOISE, CHANNELS, ROUNDING, BLUR, BEGIN, INSIDE = 0, 1, 2, 3, 4, 5  # what is known of the noise
DECAY, ERROR, FREEDOM, ODDS, EXCESS = 0, 1, 2, 3, 4  # of an estimate


@kernel
def deviate(value, freedom):
    """Normal deviate of a chi-squared value (Wilson and Hilferty 1931)."""
    return ((max(value, 0.0) / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))


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
        odds = max(odds, UNSEEN / max(1.0 - (1.0 - chance) ** 3, 1e-9))
    return min(odds, 1.0) if odds > 0.0 else 0.0
