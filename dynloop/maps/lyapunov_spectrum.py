"""At which rates does a live loop stretch and shrink small differences along its orbits?"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

if TYPE_CHECKING:
    import torch

    from dynloop.maps.loop_map import LoopMap

HORIZONS = ("asymptotic", "finite time")
_LEAST = 16  # steps, of which a quarter must be left to average and give four blocks
_MOST_BLOCKS, _LEAST_BLOCKS = 32, 4
_SHRINK = 3 / 4  # the orbit is looked at in parts, backwards, each beginning at this share of its end
_LEFT_OUT = 8  # the first eighth is left out in any case: what is too faint for one orbit biases the mean of many
_DIFFERENT = 0.02  # p-value at which an earlier part of the orbit is not like the later ones
_SAME = 1e-11  # nats: parts that differ by less are alike, however sure the difference
_PARTS = 1024  # of a compiled orbit: what is kept of it
_PILOT = 64  # steps of a compiled orbit that are tried first
_APART, _AWAY, _LONGEST = 14.0, 100.0, 64  # logs by which tangents may part, and move from 1; most steps until then
_REALIGNED_UNTIL, _REALIGNMENTS, _REALIGNED_EVERY = 0.7, 4, 0.12  # the last one, as a share of the steps; how many; ...
_HISTORY, _LEAST_HISTORY, _COLUMNS = 24, 3, 64  # frames to look back on, and tangents that these may hold
_ROUNDING = 16.0  # spacings of the number format: a stretch below that, over the largest, is 0
_REPEATS = 1e-3  # distance of stretches a period apart, over their spread
_TURNING = 0.03  # sine of the angle by which the first tangent of a complex pair turns in a step, at least
_PREDICTED, _LATE_FRAMES = 1e-3, 3  # relative error with which a linear map must predict the last images; how many


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LyapunovSpectrum:
    """Exponents of every orbit, and what they were made of.

    Attributes:
        exponents, low, high: (n, k), nats a step; NaN where the orbit was not finite or too short.
        log_stretches: (n, n_parts, k), log of what each tangent was stretched by in each part of the orbit.
        lengths: (n_parts,), steps of each part: 1 each, unless the map was compiled.
        first_parts: (n,), the part with which the average begins.
        dim: numbers in a state.
        states: (n, ...), where the orbits ended.
        tangents: (k, n, ...), orthonormal, where they ended: forward Lyapunov vectors.
        measurement: a row an orbit; see `lyapunov_spectrum`.
    """

    exponents: np.ndarray
    low: np.ndarray
    high: np.ndarray
    log_stretches: np.ndarray
    lengths: np.ndarray
    first_parts: np.ndarray
    dim: int
    states: Any
    tangents: Any
    measurement: Measurement

    def __repr__(self) -> str:
        n, k = self.exponents.shape
        return f"LyapunovSpectrum({k} of {self.dim} exponents of {n} orbits; {self.measurement!r})"

    def blocks(self, orbit: int) -> np.ndarray:
        """Means over successive blocks of one orbit, (n_blocks, k), long enough to be nearly independent."""
        first = int(self.first_parts[orbit])
        sums, steps = _whole_periods(self.log_stretches[orbit, first:], self.lengths[first:])
        return _blocks(sums / steps[:, None])

    def over_orbits(self, confidence_level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean over the orbits that were answered, with an interval (Student's t) by how they differ: each (k,).

        Raises:
            ValueError: fewer than two orbits.
        """
        own = self.exponents[self.measurement.found]
        if len(own) < 2:
            raise ValueError(f"an interval over orbits needs at least two that were answered; got {len(own)}. Give "
                             "more starts, or take the interval of the orbit.")
        with np.errstate(invalid="ignore"):  # -inf among the exponents
            middle = own.mean(0)
            reach = _quantile(len(own) - 1, 0.5 + 0.5 * confidence_level) * own.std(0, ddof=1) / np.sqrt(len(own))
        reach[np.isneginf(middle)] = 0.0
        return middle, middle - reach, middle + reach


def lyapunov_spectrum(loop: LoopMap | Callable[[Any], Any], starts: Any, *,
                      jacobian: Callable[[Any], Any] | None = None, contexts: Any = None,
                      n_exponents: int | None = None, n_steps: int = 128, discard: int | None = None,
                      tolerance: float = 0.01, confidence_level: float = 0.95, rng: Any = 0) -> LyapunovSpectrum:
    r"""Lyapunov exponents of a live loop: k tangents, carried along each orbit and made orthonormal at every step.

        Q[t+1] R[t] = J(x[t]) Q[t],   exponent[i] = mean over t of ln |R[t]_ii|,   in nats a step

    Tangents begin in random directions, and those that stretch most have to grow out of them: averaged from the start,
    the largest exponent comes out too small by some (ln dim) / (2 n_steps). Unless `discard` says what to leave out,

    * the last quarter is averaged, and then earlier parts of the orbit as long as they are like the later ones (the
      sums of the first 1, 2, ... k log stretches within the noise that the later ones show), but for the first eighth:
      what is left out is both the way to the attractor and the alignment of the tangents, and it is reported;
    * on the way, tangents are realigned up to four times: where the last images J Q are predicted by one linear map
      (the loop has come close to a fixed point), they begin anew in the leading invariant subspace of that map, as all
      tangents so far show it (block Krylov space). Whatever the tangents, the stretches are those of the loop. Two
      tangents that then go round a plane belong to a complex pair of multipliers, and share their exponent.

    The interval is that of the means over up to 32 blocks of the orbit, each at least twice as long as the stretches
    remember (by their autocorrelation), with quantiles of Student's t. It is made wider where the stretches still drift
    in the part that is averaged, by the length of the drift, and where the tangents still turn, by twice the angle of
    the last step (which is what mixed multipliers in a cluster are apart), unless they turn so fast that turns average
    out. An orbit is "asymptotic" if the intervals of all its exponents reach no farther than `tolerance` on either
    side; all else is a property of this stretch of the orbit: "finite time".

    Args:
        loop: the map; or, for many steps in few dimensions, a function of one state for Numba to compile, x -> next x,
            which takes and gives a tuple of numbers.
        starts: states (n, *state_shape) from which the orbits begin.
        jacobian: with a function, and only then: x -> Jacobian, a tuple of rows, each a tuple of numbers.
        contexts: (n,) contexts of the starts, as `LoopMap` takes them.
        n_exponents: how many of the largest; all by default, but at most 8.
        n_steps: steps of each orbit, those that are left out included.
        discard: first steps to leave out; by default as many as it takes. The average is then a plain one, and tangents
            are realigned up to there at most.
        tolerance: nats a step; see above.
        confidence_level: probability with which the interval shall cover the exponent.
        rng: seed or generator of the first tangents.

    Returns:
        A `LyapunovSpectrum`; its `measurement` has a row an orbit: `largest` exponent with `low` and `high`; `sum` of
        all that were asked for (of all dimensions: the mean log determinant of the Jacobians); `n_positive`, exponents
        whose interval lies above 0; `n_collapsed`, exponents of -inf: directions that the loop maps to 0, such as the
        radial one where a norm fixes the length of the state; `discarded` and `averaged` steps; `realigned`, how often;
        `horizon`, "asymptotic" or "finite time". Outcomes: `NOT_FINITE`: the orbit or its tangents left the finite
        numbers. `TOO_SHORT`: fewer than 16 steps, or fewer than 4 to average.

    Misleads:
        Loops run for 32 to 128 recurrences: an exponent of a finite time says what happened, not what would. Exponents
        are those of the attractor that the start leads to. Without a gap between exponent i and the next one, tangent i
        is not aligned after 1 / gap steps; only sums over whole groups are. Off a fixed point nothing speeds this up.
        Intervals assume that the orbit has seen its attractor: intermittent orbits, and those on chaotic transients,
        have not. The order is that of the tangents, and close exponents may be out of order. Exponents of the whole
        sequence of a language model are those of tokens x features, dominated by its slowest token.

    Source:
        Benettin, Galgani, Giorgilli and Strelcyn 1980 (Meccanica 15, 9); Shimada and Nagashima 1979. Realignment: block
        Arnoldi; which steps to leave out, and the interval, are ours (batch means).

    Example:
        >>> from dynloop.maps.lyapunov_spectrum import lyapunov_spectrum
        >>> spectrum = lyapunov_spectrum(lambda x: (1 - 1.4 * x[0] * x[0] + x[1], 0.3 * x[0]), [[0.1, 0.1]],
        ...                              jacobian=lambda x: ((-2.8 * x[0], 1.0), (0.3, 0.0)), n_steps=200_000)
        >>> spectrum.exponents.round(2)  # of the Henon map
        array([[ 0.42, -1.62]])
        >>> round(float(spectrum.measurement["sum"][0]), 9)  # ln 0.3
        -1.203972804
    """
    check_whole("n_steps", n_steps, 1, "a whole number of at least 1 (the default is 128)")
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 0.01)")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1, both excluded (the "
                                                                           "default is 0.95)")
    if discard is not None:
        check_whole("discard", discard, 0, f"a whole number of steps from 0 to {n_steps - 1}, or None")
        if discard >= n_steps:
            raise ValueError(f"discard must be less than n_steps, which is {n_steps}; got {discard!r}.")
    live = hasattr(loop, "jvps")  # a LoopMap, the class of which would load torch
    if live == (jacobian is not None):
        raise ValueError(f"a LoopMap has its own Jacobian, and a function of one state needs jacobian=; got "
                         f"{type(loop).__name__} {'with' if jacobian is not None else 'without'} one.")
    rng = np.random.default_rng(rng)
    if live:
        dim = loop.dim  # type: ignore[union-attr]
        k = _how_many(n_exponents, dim)
        run = _along_loop(cast("LoopMap", loop), starts, contexts, k, int(n_steps), discard, rng)
    else:
        if contexts is not None:
            raise ValueError("a function of one state has no contexts; leave contexts out, or give a LoopMap.")
        states = np.asarray(starts.detach().cpu() if hasattr(starts, "detach") else starts, dtype=np.float64)
        if states.ndim != 2:
            raise ValueError(f"starts must have shape (n, dim); got {states.shape}. One state? Pass [state].")
        dim = states.shape[1]
        k = _how_many(n_exponents, dim)
        run = _along_compiled(cast(Callable[[Any], Any], loop), jacobian, states, k, int(n_steps), discard, rng)
    return _judged(run, dim, discard, {"n_exponents": k, "n_steps": n_steps, "discard": discard,
                                       "tolerance": tolerance, "confidence_level": confidence_level})


def _how_many(n_exponents: int | None, dim: int) -> int:
    if n_exponents is None:
        return min(dim, 8)
    check_whole("n_exponents", n_exponents, 1, f"a whole number from 1 to {dim}, or None for all, but at most 8")
    if n_exponents > dim:
        raise ValueError(f"n_exponents must be at most the dimensions of a state, {dim}; got {n_exponents!r}.")
    return int(n_exponents)


@dataclasses.dataclass
class _Run:
    """What the orbits left: log stretches (n, n_parts, k), and whether each orbit stayed finite.

    `turns` (n, k) is the sine of the angle by which tangent i left, in the last step, the span of tangents 1 to i.
    """

    sums: np.ndarray
    lengths: np.ndarray
    finite: np.ndarray
    turns: np.ndarray
    realigned: np.ndarray
    resolution: float
    states: Any
    tangents: Any


def _along_loop(loop: LoopMap, starts: Any, contexts: Any, k: int, n_steps: int, discard: int | None,
                rng: np.random.Generator) -> _Run:
    import torch

    starts = starts.detach() if isinstance(starts, torch.Tensor) else torch.from_numpy(np.asarray(starts, dtype=float))
    states, contexts = loop._checked(starts, contexts)
    n, dim = len(states), loop.dim
    exact = torch.float64 if loop.dtype == torch.float64 else torch.float32  # half precision has no QR
    drawn = rng.standard_normal((n, dim, k), dtype=np.float64 if exact == torch.float64 else np.float32)
    frames = torch.linalg.qr(torch.from_numpy(drawn).to(loop.device))[0]
    finite = states.flatten(1).isfinite().all(1)
    sums = torch.empty((n_steps, n, k), dtype=torch.float64, device=loop.device)
    history, at = _realignments(k, n_steps, discard)
    past: collections.deque = collections.deque(maxlen=history)
    realigned = torch.zeros(n, dtype=torch.int64, device=loop.device)
    rest = states
    with loop.held():
        for t in range(n_steps):
            tangents = frames.permute(2, 0, 1).reshape(k, n, *loop.state_shape)
            following, images = loop.jvps(states, tangents, contexts)
            here = following.flatten(1).isfinite().all(1) & images.flatten(2).isfinite().all(2).all(0)
            if not here.all():  # other rows go on; what this one does from here on is not looked at
                finite &= here
                own = here.reshape(n, *(1 for _ in loop.state_shape))
                following = torch.where(own, following, torch.where(own.logical_not() & rest.isfinite(), rest, 0))
                images = torch.where(own, images, tangents.to(images.dtype))
            states = following
            before = frames
            frames, factors = torch.linalg.qr(images.to(exact).reshape(k, n, dim).permute(1, 2, 0))
            sums[t] = factors.diagonal(dim1=1, dim2=2).abs().double().log()
            if any(t < when <= t + history for when in at):
                past.append((before, factors))
            if t + 1 in at:
                frames, anew = _leading(past, frames, finite)
                realigned += anew
                past.clear()
    inside = (before.mT @ frames).double().square().triu().sum(1)
    turns = (1 - inside).clamp(min=torch.finfo(exact).eps).sqrt()
    tangents = frames.permute(2, 0, 1).reshape(k, n, *loop.state_shape)
    return _Run(sums.transpose(0, 1).cpu().numpy(), np.ones(n_steps, dtype=np.int64), finite.cpu().numpy(),
                turns.cpu().numpy(), realigned.cpu().numpy(), torch.finfo(loop.dtype).eps, states, tangents)


def _realignments(k: int, n_steps: int, discard: int | None) -> tuple[int, set[int]]:
    """Frames to look back on, and the steps after which tangents are realigned."""
    history = min(_HISTORY, _COLUMNS // k)
    if history < _LEAST_HISTORY:
        return 1, set()
    last = int(_REALIGNED_UNTIL * n_steps) if discard is None else discard
    apart = max(history + 1, int(_REALIGNED_EVERY * n_steps))
    return history, {last - i * apart for i in range(_REALIGNMENTS) if last - i * apart >= history}


def _leading(past: collections.deque, frames: torch.Tensor, finite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading invariant subspaces of the linear maps that the past shows; the frames where it shows none.

    Args:
        past: frames (n, dim, k) and the factors R (n, k, k) of their images, one pair a step.
        frames: (n, dim, k), the frame of the last image.
        finite: (n,) rows to look at.

    Returns:
        Frames (n, dim, k), and (n,) whether they are new.
    """
    import torch

    k, m = frames.shape[2], len(past)
    basis, inside = torch.linalg.qr(torch.cat([*(own for own, _ in past), frames], dim=2))
    # all frames in a common basis, (n, r, (m + 1) k): from here on everything is small
    small, factors = inside.cpu().double().numpy(), [r.cpu().double().numpy() for _, r in past]
    cut = 8 * torch.finfo(frames.dtype).eps ** 0.5
    chosen, anew = [], []
    for o, own in enumerate(small):
        best = None
        if finite[o]:
            images = np.concatenate([own[:, (j + 1) * k:(j + 2) * k] @ factors[j][o] for j in range(m)], axis=1)
            best = _schur(own[:, :m * k], images, k, cut)
        anew.append(best is not None)
        chosen.append(own[:, m * k:] if best is None else best)
    coordinates = torch.from_numpy(np.stack(chosen)).to(basis)
    told = torch.tensor(anew, device=frames.device)
    return torch.where(told[:, None, None], basis @ coordinates, frames), told


def _schur(tangents: np.ndarray, images: np.ndarray, k: int, cut: float) -> np.ndarray | None:
    """Leading orthonormal directions (r, k) of the map that takes tangents (r, c) to images; None if there is none.

    There is one if the map fitted to all columns but those of the last frames predicts the images of these.
    """
    late = k * min(_LATE_FRAMES, tangents.shape[1] // k // 2)

    def fitted(columns: int) -> tuple[np.ndarray, np.ndarray]:
        u, s, v = np.linalg.svd(tangents[:, :columns], full_matrices=False)
        keep = s > cut * s[0]
        return u[:, keep], images[:, :columns] @ (v[keep].T / s[keep])

    inside, carried = fitted(tangents.shape[1] - late)
    error = np.linalg.norm(carried @ (inside.T @ tangents[:, -late:]) - images[:, -late:], axis=0)
    if not (error <= max(_PREDICTED, 4 * cut) * np.linalg.norm(images[:, -late:], axis=0)).all():
        return None
    inside, carried = fitted(tangents.shape[1])
    if inside.shape[1] < k:
        return None
    values, vectors = np.linalg.eig(inside.T @ carried)
    lead = np.argsort(-np.abs(values), kind="stable")[:k]
    real = np.where(values[lead].imag < 0, vectors[:, lead].imag, vectors[:, lead].real)  # a plane for each pair
    return np.linalg.qr(carried @ real)[0]


def _along_compiled(step: Callable[[Any], Any], jacobian: Any, states: np.ndarray, k: int, n_steps: int,
                    discard: int | None, rng: np.random.Generator) -> _Run:
    from numba.core.errors import TypingError

    from dynloop.kernels.tangent import MOST_PRODUCTS, compiled, follower

    n, dim = states.shape
    if dim * dim * k > MOST_PRODUCTS:
        raise ValueError(f"{k} exponents of a compiled map in {dim} dimensions are too many (dim^2 k is at most "
                         f"{MOST_PRODUCTS}); give a LoopMap.")
    rule, slope, follow = compiled(step), compiled(jacobian), follower(dim, k)
    tangents = np.linalg.qr(rng.standard_normal((n, dim, k)))[0].transpose(0, 2, 1).copy()
    skipped = discard or 0
    n_parts = min(_PARTS, n_steps - skipped)
    whole = np.full(n_parts, (n_steps - skipped) // n_parts)
    whole[:(n_steps - skipped) % n_parts] += 1
    lengths = np.append(skipped, whole) if skipped else whole
    sums = np.zeros((n, len(lengths), k))
    finite, ends = np.empty(n, dtype=bool), np.empty((n, dim))

    for o in range(n):
        x: Any = tuple(states[o].tolist())
        pilot = np.zeros((1, k))
        try:
            follow(rule, slope, x, tangents[o].copy(), np.array([_PILOT]), 1, 1, pilot)
        except TypingError:  # written for arrays
            x = states[o].copy()
            follow(rule, slope, x, tangents[o].copy(), np.array([_PILOT]), 1, 1, pilot)
        rates = pilot[0][np.isfinite(pilot[0])] / _PILOT
        apart = normal = 1
        if len(rates) == k:
            apart = int(np.clip(_APART / max(np.ptp(rates), 1e-9), 1, _LONGEST))
            normal = int(np.clip(_AWAY / max(np.abs(rates).max(), 1e-9), apart, _LONGEST))
        x, parts = follow(rule, slope, x, tangents[o], lengths, apart, normal, sums[o])
        finite[o], ends[o] = parts == len(lengths), x
    return _Run(sums, lengths, finite, np.zeros((n, k)), np.zeros(n, dtype=np.int64),
                float(np.finfo(np.float64).eps), ends, tangents.transpose(1, 0, 2))


def _judged(run: _Run, dim: int, discard: int | None, settings: dict[str, Any]) -> LyapunovSpectrum:
    n, n_parts, k = run.sums.shape
    starts = np.cumsum(run.lengths) - run.lengths  # step at which each part begins
    n_steps = int(run.lengths.sum())
    exponents, low, high = (np.full((n, k), np.nan) for _ in range(3))
    first = np.zeros(n, dtype=np.int64)
    outcomes, horizon, n_collapsed = [], [], np.full(n, np.nan)
    for o in range(n):
        sums = run.sums[o]
        if not run.finite[o] or np.isnan(sums).any() or np.isposinf(sums).any():
            outcomes.append(Outcome.NOT_FINITE)
            horizon.append("")
            continue
        rates = sums / run.lengths[:, None]
        vanish = (rates[n_parts // 2:] <= np.log(_ROUNDING * run.resolution) + rates.max()).mean(0) >= 0.5
        there = ~(vanish | np.isneginf(sums[n_parts // 4 * 3:]).any(0))
        if discard is not None:
            first[o] = np.searchsorted(starts, discard)
        else:
            usable = np.isfinite(sums[:, there]).all(1).nonzero()[0]
            gone = 0 if len(usable) == n_parts else n_parts // 4 * 3
            first[o] = gone if not there.any() else gone + _settled(sums[gone:, there], run.lengths[gone:])
        kept, lengths = sums[first[o]:], run.lengths[first[o]:]
        if n_steps < _LEAST or len(kept) < _LEAST_BLOCKS:
            outcomes.append(Outcome.TOO_SHORT)
            horizon.append("")
            continue
        vanish |= np.isneginf(kept).any(0)
        there = ~vanish
        exponents[o], low[o], high[o], n_collapsed[o] = -np.inf, -np.inf, -np.inf, vanish.sum()
        reach = np.zeros(0)
        if there.any():
            alike, turns = _pairs(kept[:, there], run.turns[o, there]) if run.realigned[o] else \
                (kept[:, there], run.turns[o, there])
            reach = _doubt(alike, lengths, turns, settings["confidence_level"])
            exponents[o, there] = alike.sum(0) / lengths.sum()
            low[o, there], high[o, there] = exponents[o, there] - reach, exponents[o, there] + reach
        outcomes.append(Outcome.FOUND)
        horizon.append(HORIZONS[int(reach.max(initial=0.0) > settings["tolerance"])])
    answered = np.array([outcome is Outcome.FOUND for outcome in outcomes])
    discarded = np.where(answered, starts[np.minimum(first, n_parts - 1)], np.nan)
    measurement = Measurement(
        "lyapunov_spectrum",
        {"largest": exponents[:, 0], "low": low[:, 0], "high": high[:, 0], "sum": exponents.sum(1),
         "n_positive": np.where(answered, (low > 0).sum(1), np.nan), "n_collapsed": n_collapsed,
         "discarded": discarded, "averaged": n_steps - discarded,
         "realigned": np.where(answered, run.realigned, np.nan), "horizon": np.array(horizon, dtype="<U11")}, outcomes,
        units=dict.fromkeys(("largest", "low", "high", "sum"), "nats per step")
        | {"discarded": "steps", "averaged": "steps"}, settings=settings, categories={"horizon": HORIZONS})
    return LyapunovSpectrum(exponents, low, high, run.sums, run.lengths, first, dim, run.states, run.tangents,
                            measurement)


def _pairs(sums: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log stretches and turns with both tangents of each plane that turns, that of a complex pair, made alike."""
    sums, turns = sums.copy(), turns.copy()
    i = 0
    while i + 1 < len(turns):
        steady = np.ptp(sums[:, i:i + 2].sum(1)) <= 0.1 * np.ptp(sums[:, i])
        if turns[i] > _TURNING and turns[i + 1] < 0.1 * turns[i] and steady:
            sums[:, i:i + 2] = sums[:, i:i + 2].mean(1, keepdims=True)
            turns[i] = turns[i + 1]
            i += 1
        i += 1
    return sums, turns


def _quantile(freedom: int, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _memory(series: np.ndarray) -> float:
    """Sum of the autocorrelations of the columns (N, c) up to where pairs of them turn negative; the largest."""
    n, found = len(series), 1.0
    away = series - series.mean(0)
    power = np.abs(np.fft.rfft(away, 1 << (2 * n - 1).bit_length(), axis=0)) ** 2
    correlation = np.fft.irfft(power, axis=0)[:n]
    for own in correlation.T[correlation[0] > 0]:
        pairs = own[:n // 2 * 2].reshape(-1, 2).sum(1) / own[0]  # Geyer's initial positive sequence
        end = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
        found = max(found, 2 * pairs[:end].sum() - 1)
    return found


def _period(rates: np.ndarray) -> int:
    """Steps after which log stretches (N, c) repeat, on a cycle of the loop; 1 where they do not."""
    usable = rates[:, np.isfinite(rates).all(0)]
    n = len(usable)
    spread = usable.var(0).sum()
    if spread > _SAME**2:
        back = np.square(usable[::-1] - usable[-1]).sum(1)[:n // _LEAST_BLOCKS + 1]
        for p in np.flatnonzero(back <= (10 * _REPEATS) ** 2 * spread)[1:]:  # the last ones first
            if p > 1 and np.square(usable[p:] - usable[:-p]).sum(1).mean() <= _REPEATS**2 * spread:
                return int(p)
    return 1


def _whole_periods(sums: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log stretches and lengths with every period of the last quarter taken together; what is left goes first."""
    n = len(sums)
    p = _period((sums / lengths[:, None])[n - max(n // 4, min(n, 2 * _LEAST_BLOCKS)):])
    left = n % p
    if p == 1 or n // p < _LEAST_BLOCKS:
        return sums, lengths
    return sums[left:].reshape(-1, p, sums.shape[1]).sum(1), lengths[left:].reshape(-1, p).sum(1)


def _blocks(rates: np.ndarray) -> np.ndarray:
    """Means over blocks of a series (N, k), (n_blocks, k), at least four; those that do not fill a block go first."""
    n = len(rates)
    usable = rates[:, np.isfinite(rates).all(0)]
    memory = _memory(usable) if usable.shape[1] else 1.0
    n_blocks = min(max(_LEAST_BLOCKS, int(n / (2 * memory))), _MOST_BLOCKS, n)
    size = n // n_blocks
    return rates[n - n_blocks * size:].reshape(n_blocks, size, -1).mean(1)


def _doubt(sums: np.ndarray, lengths: np.ndarray, turns: np.ndarray, confidence_level: float) -> np.ndarray:
    """Half widths of the intervals of the means, (k,)."""
    mixed = 2 * turns / (1 + (turns * lengths.sum()) ** 2)
    sums, lengths = _whole_periods(sums, lengths)
    rates = sums / lengths[:, None]
    blocks = _blocks(rates)
    chance = _quantile(len(blocks) - 1, 0.5 + 0.5 * confidence_level) * blocks.std(0, ddof=1) / np.sqrt(len(blocks))
    slope, error, _, freedom = _line(rates)
    sure = np.abs(slope) > _quantile(freedom, 1 - _DIFFERENT / 2 / len(slope)) * error
    return chance + np.where(sure, np.abs(slope) * len(rates), 0.0) + mixed


def _line(series: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Slope of the columns (N, c), its error, variance of a mean of N about the line, degrees of freedom."""
    n = len(series)
    time = np.arange(n) - (n - 1) / 2
    slope = time @ series / (time @ time)
    blocks = _blocks(series - np.outer(time, slope))
    freedom = len(blocks) - 2
    variance = ((blocks - blocks.mean(0)) ** 2).sum(0) / freedom / len(blocks)
    return slope, np.sqrt(12 * variance) / n, variance, freedom


def _settled(sums: np.ndarray, lengths: np.ndarray) -> int:
    """The part from which on the log stretches (N, k) of an orbit are all alike, in whole periods to its end."""
    n = len(sums)
    sums, lengths = _whole_periods(sums, lengths)
    period = n // len(sums)
    volumes = (sums / lengths[:, None]).cumsum(1)  # growth of areas, volumes, ...: aligned one after another
    first = min(int(len(sums) * _SHRINK), max(len(sums) - _LEAST_BLOCKS, 0))
    least = len(sums) // _LEFT_OUT
    while least <= (early := int(first * _SHRINK)) <= first - 2:
        late = volumes[first:]
        _, _, variance, freedom = _line(late)
        doubt = np.sqrt(variance * (1 + len(late) / (first - early)))
        apart = np.abs(late.mean(0) - volumes[early:first].mean(0))
        if (apart > _quantile(freedom, 1 - _DIFFERENT / 2 / volumes.shape[1]) * doubt + _SAME).any():
            break
        first = early
    return n - period * (len(sums) - first)
