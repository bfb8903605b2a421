"""At which rates does a live loop stretch and shrink small differences along its orbits?"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dynloop.maps.arguments import check_loop_map, check_rows
from dynloop.maps.log_stretches import (
    LEAST_BLOCKS,
    block_means,
    half_widths,
    pairs_alike,
    quantile,
    settled,
    whole_periods,
)
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

if TYPE_CHECKING:
    import torch

    from dynloop.maps.loop_map import LoopMap

HORIZONS = ("asymptotic", "finite time")
_LEAST = 16  # steps, of which a quarter must be left to average and give four blocks
_PARTS = 1024  # of a compiled orbit: what is kept of it
_PILOT = 64  # steps of a compiled orbit that are tried first
_APART, _AWAY, _LONGEST = 14.0, 100.0, 64  # logs by which tangents may part, and move from 1; most steps until then
_REALIGNED_UNTIL, _REALIGNMENTS, _REALIGNED_EVERY = 0.7, 4, 0.12  # the last one, as a share of the steps; how many; ...
_HISTORY, _LEAST_HISTORY, _COLUMNS = 24, 3, 64  # frames to look back on, and tangents that these may hold
_ROUNDING = 16.0  # spacings of the number format: a stretch below that, over the largest, is 0
_LEAST_COSINE = 1e-8  # of an invariant subspace and that of the transpose
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
        sums, steps = whole_periods(self.log_stretches[orbit, first:], self.lengths[first:])
        return block_means(sums / steps[:, None])

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
            reach = quantile(len(own) - 1, 0.5 + 0.5 * confidence_level) * own.std(0, ddof=1) / np.sqrt(len(own))
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
    in the part that is averaged, by the length of the drift (or, if that is more, by the drift since the start: what
    falls as 1 / t has as far to go), and where the tangents still turn, by twice the angle of the last step times the
    norm of the spectral projection onto their subspace (1 of a normal map; eigenvalues that are not resolved may be
    that much farther apart than the angle), unless they turn so fast that turns average out. An orbit is "asymptotic"
    if the intervals of all its exponents reach no farther than `tolerance` on either side; all else is a property of
    this stretch of the orbit: "finite time".

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
        is not aligned after 1 / gap steps; only sums over whole groups are. Of strongly non-normal maps differences go
        on growing for a time that may be longer than the orbit: such exponents are "finite time", with intervals that
        are wide and cautious. Off a fixed point nothing speeds this up.
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
    if not callable(loop):
        check_loop_map("loop", loop)
    if not live and jacobian is None:
        raise ValueError(f"a function of one state needs jacobian=; got {type(loop).__name__} without one. Or wrap a "
                         "function (states, contexts) -> states as LoopMap(function, state_shape).")
    if live and jacobian is not None:
        raise ValueError("a LoopMap has its own Jacobian; jacobian= belongs to a function of one state. Leave it out.")
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
        check_rows("starts", states)
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

    `turns` (n, k) is the sine of the angle by which tangent i left, in the last step, the span of tangents 1 to i, and
    `skews` (n, k) the norm of the projection onto the invariant subspace that these belong to, along all others.
    """

    sums: np.ndarray
    lengths: np.ndarray
    finite: np.ndarray
    turns: np.ndarray
    skews: np.ndarray
    realigned: np.ndarray
    resolution: float
    states: Any
    tangents: Any


def _along_loop(loop: LoopMap, starts: Any, contexts: Any, k: int, n_steps: int, discard: int | None,
                rng: np.random.Generator) -> _Run:
    import torch

    starts = starts.detach() if isinstance(starts, torch.Tensor) else torch.from_numpy(np.asarray(starts, dtype=float))
    states, contexts = loop._checked(starts, contexts)
    check_rows("starts", states)
    n, dim = len(states), loop.dim
    exact = torch.float64 if loop.dtype == torch.float64 else torch.float32  # half precision has no QR
    drawn = rng.standard_normal((n, dim, k), dtype=np.float64 if exact == torch.float64 else np.float32)
    frames = torch.linalg.qr(torch.from_numpy(drawn).to(loop.device))[0]
    finite = states.flatten(1).isfinite().all(1)
    sums = torch.empty((n_steps, n, k), dtype=torch.float64, device=loop.device)
    history, at = _realignments(k, n_steps, discard)
    past: collections.deque = collections.deque(maxlen=history)
    realigned = torch.zeros(n, dtype=torch.int64, device=loop.device)
    skews = np.ones((n, k))
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
                frames, anew, skewed = _leading(past, frames, finite)
                realigned += anew
                skews = np.where(np.isnan(skewed), skews, skewed)
                past.clear()
    inside = before.mT @ frames
    turns = ((frames - before @ inside).double().square().sum(1) + inside.double().square().tril(-1).sum(1)).sqrt()
    tangents = frames.permute(2, 0, 1).reshape(k, n, *loop.state_shape)
    return _Run(sums.transpose(0, 1).cpu().numpy(), np.ones(n_steps, dtype=np.int64), finite.cpu().numpy(),
                turns.cpu().numpy(), skews, realigned.cpu().numpy(), torch.finfo(loop.dtype).eps, states, tangents)


def _realignments(k: int, n_steps: int, discard: int | None) -> tuple[int, set[int]]:
    """Frames to look back on, and the steps after which tangents are realigned."""
    history = min(_HISTORY, _COLUMNS // k)
    if history < _LEAST_HISTORY:
        return 1, set()
    last = int(_REALIGNED_UNTIL * n_steps) if discard is None else discard
    apart = max(history + 1, int(_REALIGNED_EVERY * n_steps))
    return history, {last - i * apart for i in range(_REALIGNMENTS) if last - i * apart >= history}


def _leading(past: collections.deque, frames: torch.Tensor,
             finite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Leading invariant subspaces of the linear maps that the past shows; the frames where it shows none.

    Args:
        past: frames (n, dim, k) and the factors R (n, k, k) of their images, one pair a step.
        frames: (n, dim, k), the frame of the last image.
        finite: (n,) rows to look at.

    Returns:
        Frames (n, dim, k); (n,) whether they are new; and (n, k) norms as of `_schur`, NaN where they are not.
    """
    import torch

    k, m = frames.shape[2], len(past)
    basis, inside = torch.linalg.qr(torch.cat([*(own for own, _ in past), frames], dim=2))
    # all frames in a common basis, (n, r, (m + 1) k): from here on everything is small
    small, factors = inside.cpu().double().numpy(), [r.cpu().double().numpy() for _, r in past]
    cut = 8 * torch.finfo(frames.dtype).eps ** 0.5
    chosen, anew, skews = [], [], np.full((len(frames), k), np.nan)
    for o, own in enumerate(small):
        best = None
        if finite[o]:
            images = np.concatenate([own[:, (j + 1) * k:(j + 2) * k] @ factors[j][o] for j in range(m)], axis=1)
            best = _schur(own[:, :m * k], images, k, cut)
        anew.append(best is not None)
        if best is None:
            chosen.append(own[:, m * k:])
        else:
            directions, skews[o] = best
            chosen.append(directions)
    coordinates = torch.from_numpy(np.stack(chosen)).to(basis)
    told = torch.tensor(anew, device=frames.device)
    return torch.where(told[:, None, None], basis @ coordinates, frames), told, skews


def _schur(tangents: np.ndarray, images: np.ndarray, k: int, cut: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Leading orthonormal directions (r, k) of the map that takes tangents (r, c) to images; None if there is none.

    There is one if the map fitted to all columns but those of the last frames predicts the images of these. With them
    the norms (k,) of the projections onto the first 1, 2, ... of its eigenvectors along all others: 1 of a normal map;
    by these an error of the directions grows to one of the eigenvalues.
    """
    import scipy.linalg

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
    values, left, vectors = scipy.linalg.eig(inside.T @ carried, left=True)
    order = np.argsort(-np.abs(values), kind="stable")
    lead = order[:k]
    real = np.where(values[lead].imag < 0, vectors[:, lead].imag, vectors[:, lead].real)  # a plane for each pair
    skews = np.ones(k)
    for i in range(k):
        many = i + 2 if values[order[i]].imag > 0 else i + 1  # pairs come together
        ours, theirs = (np.linalg.qr(some[:, order[:many]])[0] for some in (vectors, left))
        least = np.linalg.svd(theirs.conj().T @ ours, compute_uv=False)[-1]
        skews[i] = 1 / max(least, _LEAST_COSINE)
    return np.linalg.qr(carried @ real)[0], np.maximum.accumulate(skews)


def _along_compiled(step: Callable[[Any], Any], jacobian: Any, states: np.ndarray, k: int, n_steps: int,
                    discard: int | None, rng: np.random.Generator) -> _Run:
    from numba.core.errors import TypingError

    from dynloop.kernels.tangent import MOST_PRODUCTS, compiled, follower

    n, dim = states.shape
    if dim * dim * k > MOST_PRODUCTS:
        raise ValueError(f"{k} exponents of a compiled map in {dim} dimensions are too many (dim^2 k is at most "
                         f"{MOST_PRODUCTS}); give a LoopMap.")
    _check_shapes(step, jacobian, states[0])
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
            try:
                follow(rule, slope, x, tangents[o].copy(), np.array([_PILOT]), 1, 1, pilot)
            except TypingError as error:
                raise ValueError("Numba cannot compile the function or its jacobian=: "
                                 f"{_reason(error)}. Both take one state and use arithmetic, math and indices alone; "
                                 "give a LoopMap for all else.") from error
        rates = pilot[0][np.isfinite(pilot[0])] / _PILOT
        apart = normal = 1
        if len(rates) == k:
            apart = int(np.clip(_APART / max(np.ptp(rates), 1e-9), 1, _LONGEST))
            normal = int(np.clip(_AWAY / max(np.abs(rates).max(), 1e-9), apart, _LONGEST))
        x, parts = follow(rule, slope, x, tangents[o], lengths, apart, normal, sums[o])
        finite[o], ends[o] = parts == len(lengths), x
    return _Run(sums, lengths, finite, np.zeros((n, k)), np.ones((n, k)), np.zeros(n, dtype=np.int64),
                float(np.finfo(np.float64).eps), ends, tangents.transpose(1, 0, 2))


def _check_shapes(step: Callable[[Any], Any], jacobian: Any, state: np.ndarray) -> None:
    """One call of each in Python: what Numba says of a wrong size is hard to read."""
    dim = len(state)
    for name, function, shape in (("the function", step, (dim,)), ("jacobian", jacobian, (dim, dim))):
        if not callable(function):
            raise TypeError(f"{name} must be a function of one state; got {type(function).__name__}.")
        try:
            found = np.shape(getattr(function, "py_func", function)(tuple(state.tolist())))
        except Exception:  # written for arrays or for Numba alone, or undefined at this state
            continue
        if found != shape:
            raise ValueError(f"{name} must give {' rows of '.join(map(str, shape))} numbers for a state of {dim}; got "
                             f"{' x '.join(map(str, found)) or 'a single number'}. Give a tuple of numbers for the "
                             "next state, a tuple of rows for the jacobian, and starts of the same size.")


def _reason(error: Exception) -> str:
    """What matters in a message of Numba."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip(" .->") for line in plain.splitlines()]
    told = [line for line in lines if line and not line.startswith(("Failed in nopython", "During", "File", "- of"))]
    return told[0] if told else type(error).__name__


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
            first[o] = gone if not there.any() else gone + settled(sums[gone:, there], run.lengths[gone:])
        kept, lengths = sums[first[o]:], run.lengths[first[o]:]
        if n_steps < _LEAST or len(kept) < LEAST_BLOCKS:
            outcomes.append(Outcome.TOO_SHORT)
            horizon.append("")
            continue
        vanish |= np.isneginf(kept).any(0)
        there = ~vanish
        exponents[o], low[o], high[o], n_collapsed[o] = -np.inf, -np.inf, -np.inf, vanish.sum()
        reach = np.zeros(0)
        if there.any():
            alike, turns = pairs_alike(kept[:, there], run.turns[o, there]) if run.realigned[o] else \
                (kept[:, there], run.turns[o, there])
            reach = half_widths(alike, lengths, turns, run.skews[o, there], n_steps, settings["confidence_level"])
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
