"""Slow, obvious twins of the fast code, in NumPy and float64: the specification that the tests hold the package to."""

import cmath
import itertools
import math

import numpy as np


def norm(v):
    """Euclidean norm that neither overflows nor underflows on the way."""
    largest = np.abs(v).max()
    return float(largest * np.sqrt(((v / largest) ** 2).sum())) if 0 < largest < np.inf else float(largest)


def distance(a, b, metric):
    """Euclidean; relative: over the norm of b; cosine: half the squared distance between the unit vectors."""
    if metric == "cosine":
        return norm(a / norm(a) - b / norm(b)) ** 2 / 2
    return norm(a - b) / (norm(b) if metric == "relative" else 1.0)


def pairwise(states):
    """All distances within one orbit (T, dim), each from its own difference: (T, T)."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([[norm(a - b) for b in x] for a in x]).reshape(len(x), len(x))


def successive(states, metric="euclidean"):
    """Distance from each state of one orbit (T, dim) to the next: (T - 1,)."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([distance(a, b, metric) for a, b in itertools.pairwise(x)])


def from_last(states, metric="euclidean"):
    """Distance from each state of one orbit (T, dim) to its last: (T,)."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([distance(a, x[-1], metric) for a in x])


def line(y, first, stop):
    """Least-squares slope of ln y[t] over t in [first, stop), its standard error, and how many y > 0 there are."""
    t = np.arange(first, stop)[np.asarray(y[first:stop]) > 0]
    if len(t) < 3:
        return math.nan, math.nan, len(t)
    design = np.stack([t - t.mean(), np.ones(len(t))], axis=1)
    (slope, height), *_ = np.linalg.lstsq(design, np.log(y[t]), rcond=None)
    left = np.log(y[t]) - design @ (slope, height)
    return slope, math.sqrt(left @ left / (len(t) - 2) / (design[:, 0] @ design[:, 0])), len(t)


def regime_end(steps, cut):
    """Steps before the floor: the last one above the cut, once eight in a row lie mostly at or below it."""
    m = len(steps)
    over = next((t for t in range(m) if np.median(steps[t:t + 8]) <= cut), None)
    if over is None:
        return m
    above = np.flatnonzero(np.asarray(steps[:over + 8]) > cut)
    return above[-1] + 1 if len(above) else 0


def contraction_regime(steps, least_floor, floor_factor=3.0, min_points=5):
    """Slope, floor, regime length and state of one series of step norms, as `contraction_rate` describes it."""
    m = len(steps)
    if m < min_points:
        return math.nan, math.nan, 0, "too few"
    quarter, eighth = m - max(m // 4, 1), m - max(m // 8, 1)
    floor = max(np.median(steps[quarter:]), least_floor)
    length = regime_end(steps, floor_factor * floor)
    late, error, points = line(steps, quarter, m)
    if points >= 8 and late < -6 * error and floor > floor_factor * least_floor:
        early, _, _ = line(steps, 0, max(length, m // 2))
        tail, tail_error, tail_points = line(steps, eighth, m)
        if tail_points < 6:
            tail, tail_error = late, error
        levelled = np.median(steps[m // 2:quarter]) <= 1.2 * np.median(steps[quarter:])
        if early < 0 and max(tail, late) <= early / 2:  # at least half as fast to the end: no floor was reached
            floor, length = math.nan, m
        elif early < 0 and late <= early / 2:  # met at the very end
            floor = max(np.median(steps[m - max(m // 16, 1):]), least_floor)
            length = regime_end(steps, floor_factor * floor)
        elif not levelled and tail < -6 * tail_error and tail * (m - eighth) < -0.1:
            return math.nan, math.nan, 0, "still falling"
        elif not levelled:  # met within the last quarter
            floor = max(np.median(steps[eighth:]), least_floor)
            length = regime_end(steps, floor_factor * floor)
    slope, error, points = line(steps, 0, length)
    if points < min_points:
        return math.nan, floor, length, "too few"
    if -slope * length < math.log(floor_factor):
        return slope, floor, length, "still falling" if math.isnan(floor) else "not shrinking"
    return slope, floor, length, "fitted" if slope <= -4 * error else "not shrinking"


def contraction_rate(states, spacing, floor_factor=3.0, min_points=5):
    """Outcome, rate, floor and regime length of one finite orbit (T, dim)."""
    x = np.asarray(states, dtype=np.float64)
    steps, end = successive(x), norm(x[-1])
    slope, floor, length, state = contraction_regime(steps, 0.3 * spacing * end, floor_factor, min_points)
    if len(steps) < min_points:
        return "too short", math.nan, floor, length
    if state == "still falling":
        return "not converged", math.nan, math.nan, length
    if floor > 8 * spacing * end:  # not the number format's floor: noise about a limit, or an orbit that moves on
        late = from_last(x)[:-1][-(len(steps) // 4):]
        if state == "too few" or np.median(late) > 8 * floor:
            return "not converged", math.nan, math.nan, length
    if state == "not shrinking":
        return "not found", math.nan, floor, length
    if state == "too few":
        return "at the precision floor", math.nan, floor, length
    return "found", math.exp(slope), floor, length


def algorithm_1(s, tau=0.05, rho=0.9, metric="cosine"):
    """Algorithm 1 of Blayney et al. 2026 on one series: regime, frequency, amplitude, slope."""
    n = len(s)
    slope, height = np.polyfit(np.arange(n), s, 1)
    rest = [(s[i] - slope * i - height) * (0.5 - 0.5 * math.cos(2 * math.pi * i / n)) for i in range(n)]
    power = [abs(sum(rest[i] * cmath.exp(-2j * math.pi * k * i / n) for i in range(n))) for k in range(1, n // 2 + 1)]
    peak = int(np.argmax(power))
    frequency, amplitude = (peak + 1) / n, 4 * power[peak] / n
    near = sum(value >= 1 - tau if metric == "cosine" else value <= tau for value in s)
    if near >= rho * n:
        return "fixed point", frequency, amplitude, slope
    if amplitude >= tau / 2 and frequency >= 2 / n:
        return "orbit", frequency, amplitude, slope
    if (slope if metric == "cosine" else -slope) > tau / n:
        return "slider", frequency, amplitude, slope
    return "unknown", frequency, amplitude, slope


def lines(points):
    """Lengths of the runs of recurrences along one line of a plot."""
    return [len(list(run)) for recurrent, run in itertools.groupby(map(bool, points)) if recurrent]


def recurrence_lines(plot):
    """Lengths of all diagonal lines off the main diagonal, and of all vertical lines, of a plot (T, T)."""
    n = len(plot)
    diagonals = [length for lag in range(-n + 1, n) if lag for length in lines(np.diagonal(plot, lag))]
    return diagonals, [length for column in np.transpose(plot) for length in lines(column)]


def recurrence_quantification(states, epsilon, theiler_window=1, min_diagonal=2, min_vertical=2):
    """The eight numbers of the recurrence plot of one orbit (T, dim), as `recurrence_quantification` names them."""
    apart = np.abs(np.subtract.outer(np.arange(len(states)), np.arange(len(states)))) >= theiler_window
    plot = (pairwise(states) < epsilon) & apart
    diagonals, verticals = recurrence_lines(plot)
    long, tall = [v for v in diagonals if v >= min_diagonal], [v for v in verticals if v >= min_vertical]
    shares = [long.count(length) / len(long) for length in set(long)]
    return {"recurrence_rate": plot.sum() / apart.sum(), "determinism": sum(long) / max(sum(diagonals), 1),
            "laminarity": sum(tall) / max(sum(verticals), 1), "diagonal_entropy": -sum(p * math.log(p) for p in shares),
            "mean_diagonal": sum(long) / max(len(long), 1), "longest_diagonal": max(diagonals, default=0),
            "trapping_time": sum(tall) / max(len(tall), 1), "longest_vertical": max(verticals, default=0)}


def turns(states):
    """Cosine between each step of one orbit (T, dim) and the next, NaN where one is 0, and their distance."""
    steps = np.diff(np.asarray(states, dtype=np.float64), axis=0)
    cosines, apart = [], []
    for a, b in itertools.pairwise(steps):
        cosines.append(float(a / norm(a) @ (b / norm(b))) if norm(a) > 0 and norm(b) > 0 else math.nan)
        apart.append(norm(b - a))
    return np.array(cosines), np.array(apart)


def turning_angle(states, spacing, floor_factor=3.0):
    """Mean cosine before the floor, mean angle in degrees, and mean cosine over the last quarter of the steps."""
    cosines, _ = turns(states)
    *_, floor, length = contraction_rate(states, spacing, floor_factor)
    before = cosines[:max(length - 1, 0)] if np.isfinite(floor) else cosines
    before, late = before[np.isfinite(before)], cosines[-max((len(states) - 1) // 4 - 1, 1):]
    late = late[np.isfinite(late)]
    angles = np.degrees(np.arccos(before.clip(-1, 1)))
    return [values.mean() if len(values) else math.nan for values in (before, angles, late)]


def path_straightness(states):
    """Distance from the first to the last state of one orbit (T, dim) over the length of its path."""
    x = np.asarray(states, dtype=np.float64)
    return norm(x[-1] - x[0]) / sum(successive(x))


def drift_to_loop_ratio(states, following):
    """Jump from the last state of one block to the first of the next, over the mean step within the block."""
    return norm(np.asarray(following[0], float) - np.asarray(states[-1], float)) / np.mean(successive(states))


def travel_ahead(states):
    """How far the mean state goes on in as long again, at the pace of the last three eighths, beyond what is noise."""
    x = np.asarray(states, dtype=np.float64)
    width = len(x) // 8
    if width < 2:
        return 0.0
    a, b, c = (x[len(x) - (3 - i) * width:len(x) - (2 - i) * width].mean(0) for i in range(3))
    onward = (b - a) @ (c - b) - 4 * (successive(x[-3 * width:]) ** 2).mean() / width
    if onward <= 0:
        return 0.0
    ratio = min(norm(c - b) / norm(b - a), 1.0)
    return sum(math.sqrt(onward) * ratio ** (i + 1) for i in range(len(x) // width))


def convergence_time(states, spacing, tolerance=1e-3, relative_to="limit"):
    """Outcome, time and radius of one finite orbit (T, dim)."""
    x = np.asarray(states, dtype=np.float64)
    away = from_last(x)
    radius = max(tolerance * (norm(x[-1]) if relative_to == "limit" else away[0]), 4 * spacing * norm(x[-1]))
    if len(x) < 8:
        return "too short", math.nan, math.nan
    time = next(t for t in range(len(x)) if (away[t:] <= radius).all())
    if len(x) - 1 - time < len(x) // 4 or travel_ahead(x) > radius:
        return "not converged", math.nan, radius
    return "found", time, radius


def rate_error(steps):
    """Standard error of the slope of ln step, widened for the correlation of neighbouring rests."""
    t = np.flatnonzero(np.asarray(steps) > 0)
    if len(t) < 4:
        return math.nan
    slope, error, _ = line(steps, 0, len(steps))
    y = np.log(np.asarray(steps)[t])
    rest = y - y.mean() - slope * (t - t.mean())
    r = min(max((rest[1:] * rest[:-1]).sum() / (rest**2).sum(), 0.0), 0.95)
    return error * math.sqrt((1 + r) / (1 - r))


def cyclic_fixed_points(loop, spacing, tolerance=1e-3):
    """Verdict, separation, update after each layer and lowest cosine of every state, of a loop (layers, T, dim)."""
    x = np.asarray(loop, dtype=np.float64)
    ends = x[:, -1]
    answers = [convergence_time(own, spacing, tolerance) for own in x]
    pairs = list(itertools.combinations(range(len(x)), 2))
    gaps = {(i, j): norm(ends[i] - ends[j]) for i, j in pairs}
    separation = max((gap / max(norm(ends[i]), norm(ends[j])) for (i, j), gap in gaps.items()), default=math.nan)
    updates = [norm(after - own) / norm(own) for own, after in zip(ends, np.roll(ends, -1, axis=0), strict=True)]
    lowest = [[min(float(state @ end / norm(state) / norm(end)) for end in ends) for state in own] for own in x]
    if any(outcome != "found" for outcome, *_ in answers):
        verdict = "no fixed point"
    elif len(x) == 1:
        verdict = "fixed point"
    else:
        apart = any(gap > answers[i][2] + answers[j][2] for (i, j), gap in gaps.items())
        verdict = "cyclic" if apart else "degenerate"
    return verdict, separation, updates, np.array(lowest)


def squares(states):
    """Squared distances within one orbit (T, dim), each from its own difference."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([((x - own) ** 2).sum(1) for own in x])


def log(x):
    return math.log10(max(x, 1e-12))


def variance(states):
    """Mean squared distance from the mean."""
    return ((states - states.mean(0)) ** 2).sum(1).mean()


def squared_return(states, lag):
    """Squared distances of states `lag` apart."""
    return ((states[lag:] - states[:-lag]) ** 2).sum(1)


def closest_return(states, longest):
    """Smallest period with the closest returns of one orbit (T, dim), and seven numbers about them."""
    x = np.asarray(states, dtype=np.float64)
    n = len(x)
    late = {p: x[n - max(3 * p, n // 2):] for p in range(1, longest + 1)}
    typical = {p: max(2 * variance(own) * len(own) / (len(own) - 1), 1e-300) for p, own in late.items()}
    first = {p: squared_return(own, p).mean() for p, own in late.items()}
    second = {p: squared_return(own, 2 * p).mean() for p, own in late.items()}
    error = {p: squared_return(own, p).std() / math.sqrt(len(own) - p) / typical[p] for p, own in late.items()}
    worst = {p: max(first[p], second[p]) / typical[p] for p in late}
    best = min(worst, key=worst.get)
    period = next(p for p in late if worst[p] <= 1.02 * worst[best] + 4 * (error[p] + error[best]) + 1e-4)
    own, scale = late[period], typical[period]
    many = max(2, (2 * len(own) // 3) // period)
    last = squared_return(own, many * period)
    last_error = last.std() / math.sqrt(len(last))
    rise = (last.mean() - first[period]) / max(error[period] * scale + last_error, 1e-9 * scale)
    far_away = last.mean() / scale
    quarter, far = n // 4, n // 2 // period * period
    if far >= many * period and n - quarter - far >= 4 and \
            squared_return(x[quarter:n // 2 + period], period).mean() <= 1.2 * first[period] + 1e-4 * scale:
        far_away = max(far_away, squared_return(x[quarter:], far).mean() / scale)
    return [period, first[period] / scale, second[period] / scale, last.mean() / scale, first[1] / typical[1],
            min([worst[p] for p in late if p < period] + [9.0]), rise, far_away]


def gram_shape(states):
    """Effective dimension, and autocorrelation at lags 1 and 2, of states (w, dim) around 0."""
    products = states @ states.T
    energy = np.trace(products)
    off = products[~np.eye(len(states), dtype=bool)]
    return ((energy / len(states)) ** 2 / (off**2).mean(),
            *((states[k:] * states[:-k]).sum() / energy for k in (1, 2)))


def strongest_line(states):
    """Frequency of the highest point of the spectrum of states (w, dim) under a Hann window, and its share of all."""
    w = len(states)
    window = np.sin(np.pi * (np.arange(w) + 0.5) / w) ** 2
    grid = np.arange(1, 2 * w + 1) / (4 * w)
    waves = np.exp(-2j * np.pi * np.outer(grid, np.arange(w)))
    power = (np.abs(waves @ (window[:, None] * states)) ** 2).sum(1)
    at, shift = int(power.argmax()), 0.0
    if 0 < at < len(power) - 1:
        before, top, after = power[at - 1:at + 2]
        if before - 2 * top + after < 0:
            shift = (before - after) / (before - 2 * top + after) / 2
    return grid[at] + shift / (4 * w), power[at] / power.sum()


def without_line(states, frequency):
    """States (w, dim) less their least-squares cosine and sine of a frequency."""
    angle = 2 * np.pi * frequency * np.arange(len(states))
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if frequency == 0.5:  # there is no sine
        waves = waves[:, :1]
    return states - waves @ np.linalg.lstsq(waves, states, rcond=None)[0]


def neighbour_numbers(states, scale):
    """How nearest neighbours in the last three quarters of one orbit move on: the last numbers of `regime_numbers`."""
    d, n = squares(states), len(states)
    first, stop = n // 4 + 2, n - 4
    apart = next((k for k in range(1, n // 6) if np.diagonal(d[first:, first:], k).mean() > 0.7 * scale),
                 max(n // 6 - 1, 1))
    after, before, shifted = [], [], []
    for i in range(first, stop):
        nearest, least = None, math.inf
        for j in range(first, stop):
            if abs(i - j) > apart and d[i, j] < least - 1e-9 * scale:
                nearest, least = j, d[i, j]
        if nearest is not None:
            after.append([d[i + k, nearest + k] for k in range(5)])
            before.append([d[i - k, nearest - k] for k in (1, 2)])
            shifted.append([d[i + 1, first + (nearest - first + 2 * k + 9) % (stop - first) + 1] for k in range(24)])
    after, before, shifted = (np.mean(v, axis=0) for v in (after, before, shifted))
    numbers = {f"neighbours_{k}": log(after[k] / scale) for k in range(5)}
    numbers |= {f"neighbours_before_{k}": log(before[k - 1] / scale) for k in (1, 2)}
    numbers["determinism"] = (shifted.mean() - after[1]) / max(shifted.std(), 1e-6 * shifted.mean() + 1e-300)
    return numbers | {"theiler_window": apart / n}


def regime_numbers(states, spacing, longest_period=None):
    """The numbers of one orbit (T, dim) by which `limit_regime` judges it, from the states themselves."""
    whole = np.asarray(states, dtype=np.float64)
    x = whole[-256:]
    n = len(x)
    late = x[n // 2:]
    centre, own = late.mean(0), variance(late)
    energy = ((x - centre) ** 2).sum(1)
    edges = [b * n // 8 for b in range(9)]
    blocks = [x[a:b] for a, b in itertools.pairwise(edges)]
    numbers = {"late_over_spacing": math.log10(math.sqrt(own) / (spacing * norm(whole[-1]))),
               "start": log(energy[:2].mean() / own), "farthest": log(energy[:n // 2].max() / own)}
    steps = np.diff(x, axis=0)
    step, turn = [], []
    for b in range(8):
        at = range(min(edges[b], n - 3), min(edges[b + 1], n - 2))  # the last step has no successor
        step.append(np.mean([(steps[i] ** 2).sum() for i in at]))
        turn.append(sum(steps[i] @ steps[i + 1] for i in at) / sum((steps[i] ** 2).sum() for i in at))
        numbers[f"energy_{b}"] = log(energy[edges[b]:edges[b + 1]].mean() / own)
    numbers |= {f"step_{b}": log(step[b] / step[7]) for b in range(8)}
    numbers |= {"late_step": log(np.mean(step[4:]) / own), "turn_5": (turn[4] + turn[5]) / 2,
                "turn_7": (turn[6] + turn[7]) / 2}

    def between(a, b):
        return ((blocks[a].mean(0) - blocks[b].mean(0)) ** 2).sum()
    late_drift, spread = between(4, 7), [variance(block) for block in blocks]
    numbers["late_drift"] = math.log10(late_drift / own + 1e-6)
    numbers["late_drift_decay"] = math.log10((between(6, 7) + 1e-9 * own) / (between(4, 5) + 1e-9 * own))
    numbers["late_straightness"] = late_drift / (3 * sum(between(b, b + 1) for b in (4, 5, 6)))
    numbers["drift"] = math.log10(between(0, 7) / own + 1e-6)
    numbers["drift_decay"] = math.log10((between(1, 3) + 1e-9 * own) / (between(5, 7) + 1e-9 * own))
    numbers["spread_decay"] = log((spread[6] + spread[7]) / (spread[4] + spread[5]))
    numbers["spread_decay_before"] = log((spread[4] + spread[5]) / (spread[2] + spread[3]))
    for k in (1, 2, 3, 4, 6, 8, 12, 16):
        numbers[f"lag_{k}"] = log(squared_return(late, min(k, len(late) - 2)).mean() / own / 2)
    period, *shares, rise, far = closest_return(whole, min(longest_period or len(whole), len(whole) // 3))
    named = ("return_1", "return_2", "return_last", "step_return", "shorter_return")
    numbers |= {"period": period, "return_trend": min(max(rise, -99.0), 99.0), "far_return": log(far)}
    numbers |= {name: log(share) for name, share in zip(named, shares, strict=True)}
    dimension, *memory = gram_shape(late - centre)
    numbers |= {"dimension": log(dimension), "memory_1": memory[0], "memory_2": memory[1]}
    rest = x[n // 4:] - x[n // 4:].mean(0)
    energy, scale = (rest**2).sum(), 2 * variance(rest)
    for k in range(1, 6):
        frequency, peak = strongest_line(rest)
        if k == 1:
            numbers |= {"frequency": frequency, "peak": peak}
        rest = without_line(rest, frequency)
        numbers[f"rest_{k}"] = math.log10((rest**2).sum() / energy + 1e-9)
        if k in (2, 5):
            dimension, memory, _ = gram_shape(rest)
            numbers |= {f"rest_dimension_{k}": log(dimension), f"rest_memory_{k}": memory}
    numbers["return_over_rest"] = math.log10((shares[0] + 1e-6) / ((rest**2).sum() / energy / (1 - 10 / len(rest))
                                                                   + 1e-6))
    numbers |= neighbour_numbers(x, scale)
    for name in ("return_2", "return_last", "far_return"):
        numbers[f"{name}_rise"] = numbers[name] - numbers["return_1"]
    return numbers | {"neighbours_below_return": numbers["neighbours_0"] - numbers["return_1"]}


def shuffled_means(states, pairs):
    """Mean squared distance over pairs of places (i, j), for every order of the states."""
    d = squares(states)
    return np.array([np.mean([d[order[i], order[j]] for i, j in pairs])
                     for order in itertools.permutations(range(len(d)))])


def tree_sum(row, node):
    """The leaf of a tree (feature, threshold, left, right) or (value,) into which a row falls."""
    if len(node) == 1:
        return node[0]
    feature, threshold, left, right = node
    return tree_sum(row, left if row[feature] <= threshold else right)


def difference_modes(states, rank):
    """Multipliers by the dynamic mode decomposition of the differences of one orbit (T, dim), largest modulus first."""
    d = np.diff(np.asarray(states, dtype=np.float64), axis=0).T
    u, s, vh = np.linalg.svd(d[:, :-1], full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    values = np.linalg.eigvals(u.T @ d[:, 1:] @ vh.T / s)
    return values[np.argsort(-abs(values), kind="stable")]


def one_step_modes(scores):
    """Multipliers of the affine map that least squares fit to scores (n, L), conjugates included."""
    design = np.vstack([scores[:, :-1], np.ones(scores.shape[1] - 1)]).T
    solution, *_ = np.linalg.lstsq(design, scores[:, 1:].T, rcond=None)
    return np.linalg.eigvals(solution[:-1])


def mode_design(modes, times):
    """Columns 1, Re lambda^t and, where it is complex, Im lambda^t at the given times."""
    columns = [np.ones(len(times))]
    for value in modes:
        power = np.array([complex(value) ** int(t) for t in times])
        columns += [power.real] if np.imag(value) == 0 else [power.real, power.imag]
    return np.stack(columns, axis=1)


def mode_fit(states, modes):
    """What powers of modes leave of states (L, dim), (L, dim)."""
    x = np.asarray(states, dtype=np.float64)
    design = mode_design(modes, range(len(x)))
    return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]


def mode_support(states, modes):
    """Energy that each mode explains beyond what all others do, per column of the fit."""
    whole = (mode_fit(states, modes) ** 2).sum()
    without = [(mode_fit(states, [*modes[:k], *modes[k + 1:]]) ** 2).sum() for k in range(len(modes))]
    return [(energy - whole) / (1 if np.imag(m) == 0 else 2) for energy, m in zip(without, modes, strict=True)]


def evenly(count, stop):
    """About `count` whole numbers from 0 to stop - 1, evenly spaced."""
    count = min(count, stop)
    return np.arange(count) * (stop - 1) // max(count - 1, 1)


def middle_mean(values):
    """Mean of what lies between the quartiles."""
    values, quarter = np.sort(values), len(values) // 4
    return values[quarter:len(values) - quarter].mean()


def to_segment(d2, p, q):
    """Squared distance of state p to the segment from state q to q + 1, from squared distances."""
    start, end, length = d2[p, q], d2[p, q + 1], d2[q, q + 1]
    share = np.clip((start + length - end) / (2 * length), 0, 1) if length > 0 else 0
    return max(start, 0) if share == 0 else end if share == 1 else max(start - share**2 * length, 0)


def parted(d2, i, j, ahead, shift, floor):
    """Log distance of the pair (i, j) after each of `ahead` steps; with a shift, from the segments near j."""
    logs, at = [], 0
    for k in ahead:
        value = d2[i + k, j + k]
        if shift:
            first, last = max(-shift, -(j + k)), min(shift, len(d2) - 2 - (j + k))
            at = min(max(at, first), last)
            value = to_segment(d2, i + k, j + k + at)
            for way in (1, -1):
                while first <= at + way <= last and to_segment(d2, i + k, j + k + at + way) <= value:
                    at += way
                    value = to_segment(d2, i + k, j + k + at)
        logs.append(math.log(max(value, floor)) / 2)
    return np.array(logs)


def levels_off(curve, ahead, start):
    """First point of a divergence curve from which half as many steps again gain less than .2, and the level there."""
    later = np.flatnonzero(ahead >= start)
    for a in later:
        if curve[a] - curve[later[0]:a + 1].min() >= 1 and ahead[-1] >= 1.5 * ahead[a]:
            next_half = curve[a:][ahead[a:] <= 1.5 * ahead[a] + 1]
            if next_half.max() - curve[a] < 0.2:
                return a, next_half.mean()
    return None, math.nan


def pair_error(influence, i, j, stop, n_blocks=8):
    """Standard error of a sum over pairs (i, j); two pairs that share an eighth of the record are dependent."""
    i, j = np.asarray(i) * n_blocks // stop, np.asarray(j) * n_blocks // stop
    dyads = {}
    for pair in zip(np.minimum(i, j).tolist(), np.maximum(i, j).tolist(), influence, strict=True):
        dyads[pair[:2]] = dyads.get(pair[:2], 0) + pair[2]
    total = sum(a * b for one, a in dyads.items() for other, b in dyads.items() if set(one) & set(other))
    return math.sqrt(max(total, sum(a * a for a in dyads.values())) * n_blocks / (n_blocks - 1))


def lyapunov_from_data(states, resolution, method="rosenstein", delays=0, theiler_window=None):
    """Why there is no exponent, or ("fitted", slope, half width, first and last step, growth); then the window, level
    and curve, as far as they are known."""
    x = np.asarray(states, dtype=np.float64)
    floor = max(resolution**2 * (x**2).sum(1).mean() * (delays + 1), 1e-300)
    length = len(x) - delays
    if length < 100:
        return ("too few steps",)
    d2 = ((x[:, None] - x[None]) ** 2).sum(2)
    d2 = sum(d2[back:back + length, back:back + length] for back in range(delays + 1))
    reach = length // 8
    stop = length - reach
    rows, columns = evenly(32, length)[:, None], evenly(64, length)[None]
    scale = np.median(d2[rows, columns][rows != columns])
    if not 16 * floor < scale < np.inf:
        return ("at rest",)
    profile = np.array([np.median(d2[evenly(64, stop), evenly(64, stop) + lag]) for lag in range(reach + 1)])
    grown = [lag for lag in range(1, reach + 1) if profile[lag] >= scale / 2]
    if not grown or grown[0] > reach // 2:
        return ("not recurrent",)
    decay = grown[0]
    period = next((lag for lag in range(decay, reach + 1) if profile[lag] < 0.7 * profile[decay:lag + 1].max()), 0)
    while 0 < period < reach and profile[period + 1] < profile[period]:
        period += 1
    t = np.arange(1, length - 1)
    straight = np.median((d2[t - 1, t + 1] - d2[t - 1, t] - d2[t, t + 1])
                         / (2 * np.sqrt(d2[t - 1, t] * d2[t, t + 1]) + 1e-300))
    flow, turn = decay > 2 or straight > 0.9, max(period, 2 * decay)
    if flow and length < 60 * max(period, decay):
        return ("too few turns",)
    window = theiler_window or max(2, decay, period if flow and period <= reach // 2 else 0)
    start = max(1, turn // 2) if flow else 1
    if stop <= 2 * window + 1:
        return ("too few steps",)

    pairs = []
    for i in range(stop):
        near = []
        for j in sorted(range(stop), key=lambda j, i=i: d2[i, j]):
            if abs(i - j) > window and all(abs(j - other) > window for other in near):
                near.append(j)
            if len(near) == (5 if method == "kantz" else 1):
                break
        pairs.append(near)
    if method == "kantz":
        radius = np.median([d2[i, near[0]] for i, near in enumerate(pairs)])
        pairs = [[j for j in near if d2[i, j] <= radius] for i, near in enumerate(pairs)]
    known = [i for i in range(stop) if pairs[i]]

    def curve_of(references, ahead, shift):
        """Log distances (references, ahead): of one neighbour, or of the mean over several."""
        logs = [[parted(d2, i, j, ahead, shift, floor) for j in pairs[i]] for i in references]
        return np.array([one[0] if method == "rosenstein" else np.log(np.maximum(np.mean(np.exp(one), axis=0),
                                                                                 math.sqrt(floor))) for one in logs])

    rows, columns = np.broadcast_arrays(evenly(32, length)[:, None], evenly(64, length)[None])
    far = abs(rows - columns) > window
    level = middle_mean(0.5 * np.log(np.maximum(d2[rows[far], columns[far]], floor)))
    scouts = [known[a] for a in evenly(128, len(known))]
    shift, now = 0, np.array([0])
    if straight > 0.9:
        shift = max(2, turn // 2)
        if np.median(curve_of(scouts, now, shift) - curve_of(scouts, now, 0)) <= -2.3:
            shift = 0
    ahead = [0]
    while max(ahead[-1] + 1, ahead[-1] * 108 // 100) <= reach:
        ahead.append(max(ahead[-1] + 1, ahead[-1] * 108 // 100))
    ahead = np.array(ahead)
    at, _ = levels_off(np.array([middle_mean(v) for v in curve_of(scouts, ahead, shift).T]), ahead, start)
    last = reach if at is None else min(reach, 3 * ahead[at] // 2 + 2)
    ahead = np.arange(0, last + 1, max(1, last // 40))
    logs = curve_of(known, ahead, shift)
    curve = np.array([middle_mean(v) for v in logs.T])
    at, here = levels_off(curve, ahead, start)
    level = level if at is None else min(level, here)

    quarter = len(known) // 4
    ordered = np.sort(logs, axis=0)
    clipped = np.clip(logs, ordered[quarter], ordered[len(known) - 1 - quarter])
    influence = (clipped - clipped.mean(0)) / (1 - 2 * quarter / len(known)) / len(known)
    usable = np.flatnonzero(ahead >= start)
    beyond = [a for a in usable if curve[a] > level - 0.7]
    end = beyond[0] if beyond else len(ahead)
    best, narrowest = None, math.inf
    for first in usable[usable < end - 2]:
        if curve[first] < math.log(16 * floor) / 2:
            continue
        for noise in np.array([0, 0.25, 0.5]) * math.exp(2 * curve[first]):
            for stop_at in range(first + 3, end + 1):
                k, seen = ahead[first:stop_at].astype(float), np.exp(2 * curve[first:stop_at])
                if (seen <= 1.2 * noise).any():
                    break
                left = 1 - seen / math.exp(2 * level)
                d = seen / left - noise
                growth = (math.log(d[-1]) - math.log(d[0])) / 2
                if growth < 1.2:
                    continue
                half = (len(k) + 1) // 2

                def weights(part, k=k):
                    w = np.zeros(len(k))
                    w[part] = k[part] - k[part].mean()
                    return w / (w @ w)

                def error(w, first=first, stop_at=stop_at, seen=seen, left=left, d=d):
                    each = influence[:, first:stop_at] @ (w * seen / (left**2 * d))
                    spread = [(each[r] / len(pairs[i]), i, j) for r, i in enumerate(known) for j in pairs[i]]
                    return pair_error(*zip(*spread, strict=True), stop)

                whole, early, late = (weights(p) for p in (slice(None), slice(0, len(k) - half + 1),
                                                           slice(half - 1, None)))
                slope, apart = whole @ np.log(d) / 2, abs((early - late) @ np.log(d)) / 2
                if slope <= 0 or apart > max(0.1 * slope, min(2 * error(early - late), 0.35 * slope)):
                    continue
                width = math.sqrt((2.3646 * error(whole)) ** 2 + apart**2 + (0.25 / (k[-1] - k[0])) ** 2)
                if width * (1.5 if noise else 1) < narrowest:
                    narrowest = width * (1.5 if noise else 1)
                    best = ("fitted", slope, width, ahead[first], ahead[stop_at - 1], growth)
    if best is None:
        best = ("no neighbours" if curve[0] > level - 2 else "no plateau", *[math.nan] * 5)
    return *best, window, level, dict(zip(ahead.tolist(), curve, strict=True))


def correlation_dimension(states, resolution, theiler_window=None):
    """The outcome's value, then dimension, half width of its interval, smallest and largest scale, window, if found."""
    x = np.asarray(states, dtype=np.float64)
    if len(x) < 40:
        return ("too short",)
    floor = 8 * resolution * math.sqrt((x**2).sum(1).mean())
    first, middle = len(x) // 4, (len(x) // 4 + len(x)) // 2
    x, halves = x[first:], middle - first
    n = len(x)
    d = np.sqrt(((x[:, None] - x) ** 2).sum(2))
    i, j = np.triu_indices(n, 1)
    if d.max() <= 2 * floor:
        return ("at the precision floor",)

    def mean_square(pairs):
        return (d[i[pairs], j[pairs]] ** 2).mean()

    early, late, across = mean_square(j < halves), mean_square(i >= halves), mean_square((i < halves) & (j >= halves))
    if late == 0 or not 0.5 < early / late < 2:
        return ("not converged",)
    lags = [k for k in range(1, n // 12 + 1)
            if np.mean(np.diagonal(d, k) ** 2) >= 0.7 * ((early + late) / 4 + across / 2)]
    if not lags:
        return ("not converged",)
    window = theiler_window or lags[0]
    if n <= 4 * window:
        return ("too short",)
    counted = j - i > window
    i, j, own = i[counted], j[counted], d[i[counted], j[counted]]
    edges = d.max() * 2.0 ** (np.arange(-128, 1) / 8)
    block_i, block_j = i * 8 // n, j * 8 // n

    def count(kept):
        return np.array([(own[kept] <= edge * (1 + 1e-12)).sum() for edge in edges], dtype=float)

    c = count(own >= 0)
    without = [count((block_i != b) & (block_j != b)) for b in range(8)]
    usable = np.flatnonzero((c >= max(10, n / 4)) & (edges >= floor) & (c <= len(own) / 4))
    best = None
    ranges = [r for r in itertools.combinations(usable.tolist(), 2) if r[1] - r[0] >= 16]
    for low, high in sorted(ranges, key=lambda r: r[0] - r[1]):
        if best and high - low < best[1] - best[0]:
            break

        def slope(c, a, b):
            s = np.sqrt(c[a:b + 1])
            return 2 * (s[-1] - s[0]) / ((s[1:] + s[:-1]).sum() / 2 * math.log(2) / 8)

        middle = (low + high) // 2

        def bend(c, low=low, middle=middle, high=high, slope=slope):
            return slope(c, middle, high) - slope(c, low, middle)

        def spread(values, centre):
            return math.sqrt(sum((v - centre) ** 2 for v in values) * 7 / 8)

        whole, apart = slope(c, low, high), bend(c)
        bottom = min(int((edges < floor).sum()), low)
        if abs(apart) > 0.35 * whole:
            continue
        level = any(c[edge] > c[low] * (edges[edge] / edges[low]) ** (whole / 2) + 2 * math.sqrt(c[edge])
                    for edge in (bottom, max(low - 16, 0)))
        doubt = spread([bend(w) for w in without], apart)
        if level or abs(apart) > max(0.05 * whole, 2 * doubt):
            continue
        error = spread([slope(w, low, high) for w in without], whole)
        half = math.sqrt((2.3646 * error) ** 2 + apart**2 + (0.1 * whole) ** 2)
        if best is None or half < best[3]:
            best = (low, high, whole, half)
    if best is None or best[2] < 0.3 or best[3] > best[2] / 2:
        return ("not found",)
    return "found", best[2], best[3], edges[best[0]], edges[best[1]], window


def displacements(states, longest, angles):
    """Mean squared displacement of sums of turned states (T, dim), as Gottwald and Melbourne write it."""
    x = np.asarray(states, dtype=np.float64)
    x = x - x.mean(0)
    n = len(x)
    moved = np.zeros((len(angles), longest))
    for c, angle in enumerate(angles):
        turned = x * np.exp(1j * angle * np.arange(n))[:, None]
        path = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(turned, axis=0)])
        for m in range(1, longest + 1):
            moved[c, m - 1] = np.mean([np.linalg.norm(path[j + m] - path[j]) ** 2 for j in range(n - longest)])
    return moved
