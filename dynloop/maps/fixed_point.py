"""Where does a map rest? Fixed points from many starts, each certified, duplicates merged."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from dynloop.maps.fixed_point_search import JVP, TANGENTS, Search, fixed_point_iteration, newton_krylov, norm, solve
from dynloop.maps.loop_map import LoopMap
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

METHODS = ("anderson", "iteration", "newton_krylov")
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_SOLVED = 0.1  # relative residual of the linear solve that certifies
_CONFIRMED = 0.2  # ... and what the Newton step must leave of the residual: a double root leaves a quarter
_HIDDEN = 100.0  # spacings at the norm of the state: the rounding of a deep block may be as large
_ATTEMPTS = 6  # Newton steps until a point must be certified


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FixedPoints:
    """Fixed points of a map, and what became of every start.

    Attributes:
        points: (n_points, *state_shape), certified and distinct, in the order of the first start that led there.
        contexts: (n_points,) context of each point.
        counts: (n_points,) starts that led to each point.
        residuals: (n_points,) ||F(x) - x||, evaluated at the point as it stands here.
        distances: (n_points,) estimated distance to the true fixed point.
        states: (n_starts, *state_shape), for every start the state of lowest residual that it came to, whatever its
            outcome: to go on from, not an answer.
        measurement: one row a start: `residual` and `relative_residual` (over ||x||) of its state, `evaluations`;
            and where `FOUND`, `point` (row of `points`) and `distance` of its state to the fixed point.
    """

    points: torch.Tensor
    contexts: np.ndarray
    counts: np.ndarray
    residuals: np.ndarray
    distances: np.ndarray
    states: torch.Tensor
    measurement: Measurement

    @property
    def n_points(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        counted = ", ".join(f"{n} {o.value}" for o, n in self.measurement.counts().items())
        return f"FixedPoints({self.n_points} from {self.measurement.n_orbits} starts: {counted})"


def find_fixed_points(map: LoopMap, starts: torch.Tensor, *, method: str = "anderson",
                      tolerance: float | None = None, max_evaluations: int = 1000,
                      merge_distance: float | None = None, memory: int = 5,
                      contexts: torch.Tensor | None = None) -> FixedPoints:
    r"""States x with F(x) = x, from many starts at once.

    The residual of a state is ||F(x) - x||, the Euclidean norm over all its numbers. All starts run as one batch, and
    those that are done leave it. A residual below `tolerance` is not yet a fixed point. One state for each point is
    certified by Newton's method, d = (I - J)^-1 (F(x) - x) by GMRES: d must solve its equation to a tenth; it must be
    short, at most `merge_distance`; and x + d must have a residual at most a fifth as large, down to rounding. Where
    rounding decides from the beginning, the exact Jacobian must confirm d. To first order ||d|| is the distance to the
    fixed point; it holds for rho > 1 too, and is at most residual / (1 - rho) for a normal J. States that drift,
    however slowly, pass where a point almost is, or stand still because their number format has no smaller step, fail
    there: the equation has no solution, or only a long one, or the residual does not fall.

    Methods:
        anderson: x <- F(x), combined with the last `memory` steps so that the residual is least, to first order. A step
            that raises the residual is taken back; that, or 15 evaluations without progress, forgets the memory and is
            followed by 1, 2, 4, ... steps of plain iteration, so that the search is never much slower than that.
        iteration: x <- F(x), as the loop itself runs. The only one that says in whose basin a start lies.
        newton_krylov: Newton's method, with exact Jacobian-vector products in GMRES (at most 40 a step) and a
            backtracking line search; where a step wins less than a tenth, 1, 2, 4, ... steps of plain iteration and
            random pushes in turn (the same for every start). Finds unstable points as well; the one to use for "all".

    Args:
        map: the rule; its Jacobian-vector products are needed.
        starts: (n_starts, *state_shape).
        method: see above.
        tolerance: largest residual, not relative to anything; by default 1e-10 in float64 and 1e-5 in float32.
        max_evaluations: applications of the block for each start before its search ends; a Jacobian-vector product
            counts as 2 (the block and its tangent). The last Newton step may go a little beyond. Certifying comes on
            top, for one start a point: 5 to 40 evaluations as a rule.
        merge_distance: points of one context count as one when they are no farther apart than this, relative to their
            scale: the larger of their norms, but at least the smaller of ||x_0|| and ||F(x_0)|| (a fixed point may be
            0). Also how well a point must be known. By default the cube root of the dtype's spacing, 6e-6 in float64.
        memory: steps that Anderson acceleration combines.
        contexts: (n_starts,) whole numbers, as the map takes them; by default start i modulo `n_contexts`.

    Returns:
        `FixedPoints`. `FOUND`: the state is within `merge_distance` of a certified point and its own residual is at
        most `tolerance`. `NOT_CONVERGED`: `max_evaluations` were not enough; limit cycles, chaos and drifts end here.
        `NOT_FOUND`: a residual below `tolerance`, but no fixed point there. `AT_PRECISION_FLOOR`: the residual is down
        to the rounding of the state, 8 spacings of its norm, and still above `tolerance`; or `tolerance` asks for less
        than rounding leaves; or the state stands still where a multiplier is 1 to rounding. `NOT_FINITE`: the orbit
        overflowed. `residual`, `relative_residual` and `evaluations` are given whatever the outcome.

    Raises:
        ValueError: no LoopMap, bad shapes or settings.

    Misleads:
        Only isolated points are certified: on a line of fixed points (multiplier exactly 1) the outcome is
        `AT_PRECISION_FLOOR` or `NOT_FOUND`, since nothing tells rest from drift there. Anderson and Newton steps jump:
        which start leads where, and `counts`, are basins for method="iteration" only, and no method promises to find
        every point. Fixed points closer than `merge_distance` become one. `distance` is a first-order estimate, from
        the tangents that GMRES tried: a slow mode that none of them touches is not seen. In float32 and below, a
        fixed point is that of the rounded map. Token by token residuals may be far smaller than that of the sequence.

    Source:
        Walker & Ni, SIAM J. Numer. Anal. 49 (2011) 1715 (difference form); He et al., SIAM J. Matrix Anal. Appl. 45
        (2024) 712 (with an orthonormal memory, which for a symmetric J keeps what it forgets); Zhang, O'Donoghue &
        Boyd, SIAM J. Optim. 30 (2020) 3170 (safeguards); Knoll & Keyes, J. Comput. Phys. 193 (2004) 357; Eisenstat &
        Walker, SIAM J. Sci. Comput. 17 (1996) 16 (how well to solve). Sussillo & Barak, Neural Comput. 25 (2013) 626,
        for the use.

    Example:
        >>> import torch
        >>> from dynloop.maps import LoopMap
        >>> from dynloop.maps.fixed_point import find_fixed_points
        >>> f = LoopMap(lambda x, contexts: torch.tanh(2 * x), (1,))
        >>> found = find_fixed_points(f, torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64))
        >>> found
        FixedPoints(2 from 3 starts: 3 found)
        >>> found.points[:, 0], found.counts
        (tensor([-0.9575,  0.9575], dtype=torch.float64), array([1, 2]))
    """
    if not isinstance(map, LoopMap):
        raise ValueError(f"map must be a LoopMap; got {type(map).__name__}. Wrap a function (states, contexts) -> "
                         "states as LoopMap(function, state_shape), a model with LoopMap.of.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if tolerance is None:
        if map.dtype not in _TOLERANCE:
            raise ValueError(f"tolerance has a default for float64 and float32 only; the map's states are {map.dtype}. "
                             "Give one, or build the map in a wider dtype.")
        tolerance = _TOLERANCE[map.dtype]
    eps = torch.finfo(map.dtype).eps
    if merge_distance is None:
        merge_distance = eps ** (1 / 3)
    check_number("tolerance", tolerance, lambda v: 0 < v < math.inf, "a positive number (1e-10 suits float64)")
    check_number("merge_distance", merge_distance, lambda v: 0 < v < 1, "a number between 0 and 1 (the default is the "
                 "cube root of the dtype's spacing)")
    check_whole("max_evaluations", max_evaluations, 1, "a whole number of at least 1 (the default is 1000)")
    check_whole("memory", memory, 1, "a whole number of at least 1 (the default is 5)")
    states, rows = _checked(map, starts, contexts)
    search = Search(map, rows, tolerance, eps, states)
    with torch.no_grad(), map.held():
        if method == "newton_krylov":
            newton_krylov(search, max_evaluations)
        else:
            fixed_point_iteration(search, max_evaluations, memory if method == "anderson" else 0)
        return _certified(search, merge_distance, {
            "method": method, "tolerance": tolerance, "max_evaluations": max_evaluations,
            "merge_distance": merge_distance, "memory": memory})


def _checked(map: LoopMap, starts: torch.Tensor, contexts: torch.Tensor | None) \
        -> tuple[torch.Tensor, torch.Tensor]:
    """Starts as rows (n, dim), and their contexts."""
    starts = torch.as_tensor(starts)
    if tuple(starts.shape[1:]) != map.state_shape or not starts.ndim or not len(starts):
        raise ValueError(f"starts must have shape (n_starts, {', '.join(str(n) for n in map.state_shape)}) with at "
                         f"least one start; got {tuple(starts.shape)}. One start? Pass start[None].")
    if contexts is None:
        contexts = torch.arange(len(starts)) % map.n_contexts
    contexts = torch.as_tensor(contexts)
    if contexts.shape != (len(starts),) or contexts.dtype.is_floating_point or contexts.dtype == torch.bool \
            or not bool(((contexts >= 0) & (contexts < map.n_contexts)).all()):
        raise ValueError(f"contexts must hold one whole number from 0 to {map.n_contexts - 1} for each of "
                         f"{len(starts)} starts; got {contexts.dtype} of shape {tuple(contexts.shape)}.")
    return starts.to(map.device, map.dtype).reshape(len(starts), -1), contexts.long().cpu()


def _certified(search: Search, merge_distance: float, settings: dict) -> FixedPoints:
    """Certify what has a small residual, one start for each point, and say what became of every start."""
    n = len(search.states)
    everyone = torch.arange(n, device=search.states.device)
    outcomes = np.full(n, Outcome.NOT_CONVERGED, dtype=object)
    outcomes[search.at_floor(everyone).cpu().numpy()] = Outcome.AT_PRECISION_FLOOR
    outcomes[search.broken.cpu().numpy()] = Outcome.NOT_FINITE
    pending = ((search.residuals <= search.tolerance) & (search.tolerance > search.rounding(everyone))).cpu()
    points: list[int] = []  # the start that stands for each point
    point, distance = np.full(n, -1), np.full(n, np.nan)
    while bool(pending.any()):
        leaders, alike = _leaders(search, pending, merge_distance)
        verdicts, errors = _certify(search, leaders, merge_distance)
        for leader, group, verdict, error in zip(leaders.tolist(), alike, verdicts, errors, strict=True):
            if verdict is not Outcome.FOUND:  # what lies next to it is refused with it
                outcomes[group] = verdict
                pending[group] = False
                continue
            apart = search.apart(leader).numpy()
            same = [p for p in points if apart[p] <= merge_distance]
            if not same:
                points.append(leader)
                distance[leader] = error
                near = pending.numpy() & (apart <= merge_distance)
                near[leader] = True
            else:
                near = np.arange(n) == leader
            p = same[0] if same else leader
            away = norm(search.states - search.states[p]).cpu().double().numpy()
            point[near], distance[near] = p, away[near] + distance[p]
            outcomes[near] = Outcome.FOUND
            pending[near] = False
    return _answer(search, np.array(sorted(points), dtype=int), point, distance, outcomes, settings)


def _leaders(search: Search, pending: torch.Tensor, merge_distance: float) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Starts of lowest residual, no two of which are within `merge_distance`, and the starts near each."""
    open_, leaders, groups = pending.numpy().copy(), [], []
    residuals = search.residuals.cpu().double().numpy()
    while open_.any():
        leader = int(np.where(open_, residuals, math.inf).argmin())
        near = open_ & (search.apart(leader).numpy() <= merge_distance)
        near[leader] = True
        leaders.append(leader)
        groups.append(near)
        open_ &= ~near
    return torch.tensor(leaders, device=search.states.device), groups


def _certify(search: Search, rows: torch.Tensor, merge_distance: float) -> tuple[list[Outcome], list[float]]:
    """Newton steps from some states until each is certified or refused; a better state is kept.

    GMRES first takes difference quotients, which cost one evaluation: where the residual then falls, that is proof.
    Where it does not, or is rounding already, the exact Jacobian decides.

    Returns:
        An outcome and an estimated distance to the fixed point for each.
    """
    verdicts, errors = [Outcome.NOT_CONVERGED] * len(rows), [math.nan] * len(rows)
    x, g = search.states[rows], search.images[rows]
    at = torch.arange(len(rows), device=x.device)
    exact = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    # rounding may hide what a state does: a little noise makes a multiplier of 1 show itself
    noise = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    noise /= norm(noise)
    for _ in range(_ATTEMPTS):
        own = rows[at]
        scale, rounding, r = search.scale(own), search.rounding(own), norm(g - x)
        tiny = torch.finfo(r.dtype).tiny
        hidden = _HIDDEN * search.eps * scale
        if bool(exact.any()):
            rough = _roughness(search, x[exact], g[exact], own[exact], search.eps ** 0.5 * scale[exact, None] * noise)
            hidden[exact] = torch.maximum(hidden[exact], 3 * rough)
        right = g - x + rounding[:, None] * noise
        forcing = (0.3 * hidden / r.clamp(min=tiny)).clamp(1e-4, _SOLVED)
        step, left, least = torch.empty_like(x), torch.empty_like(r), torch.empty_like(r)
        for some, images in ((~exact, g), (exact, None)):
            if bool(some.any()):
                step[some], left[some], least[some] = solve(
                    search, x[some], right[some], own[some], forcing[some], torch.full_like(own[some], TANGENTS),
                    None if images is None else images[some])
        trial = x + step
        image = search.apply(trial, own)
        r_trial = norm(image - trial)
        search.keep(own, trial, image, r_trial)
        lower, shrank = torch.minimum(r, r_trial), r_trial < r
        fell = (r_trial <= _CONFIRMED * r) & (r > rounding)
        error = norm(step) + left * norm(right) / least
        known = (left <= _SOLVED) & (error <= merge_distance * scale)
        good = known & (lower <= hidden.clamp(max=search.tolerance)) & (fell | (exact & (r <= hidden)))
        going = ~good & (shrank | ~exact)
        for index, found, on, floor, distance in zip(
                at.tolist(), good.tolist(), going.tolist(), (lower <= hidden).tolist(),
                (error * lower / r.clamp(min=tiny)).tolist(), strict=True):
            if found:
                verdicts[index], errors[index] = Outcome.FOUND, distance
            elif not on:
                verdicts[index] = Outcome.AT_PRECISION_FLOOR if floor else Outcome.NOT_FOUND
        x, g = torch.where(shrank[:, None], trial, x), torch.where(shrank[:, None], image, g)
        at, x, g, exact = at[going], x[going], g[going], (exact | ~fell)[going]
        if not len(at):
            break
    return verdicts, errors


def _roughness(search: Search, x: torch.Tensor, images: torch.Tensor, rows: torch.Tensor,
               away: torch.Tensor) -> torch.Tensor:
    """||F(x + a) - F(x) - J a||: how far a block may be off its Jacobian, as where it computes in less precision."""
    search.evaluations[rows] += JVP
    return norm(search.apply(x + away, rows) - images - search.tangent(x, away, search.contexts[rows.cpu()]))


def _answer(search: Search, points: np.ndarray, point: np.ndarray, distance: np.ndarray, outcomes: np.ndarray,
            settings: dict) -> FixedPoints:
    """Number the points in the order of the first start that led there."""
    first = sorted(points, key=lambda p: int(np.flatnonzero(point == p)[0]))
    number = {int(p): i for i, p in enumerate(first)}
    index = np.array([number.get(int(p), np.nan) for p in point], dtype=float)
    at = torch.as_tensor(np.array(first, dtype=int), device=search.states.device)
    shape = search.map.state_shape
    residuals = search.residuals.cpu().double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = residuals / norm(search.states).cpu().double().numpy()
    measurement = Measurement(
        "find_fixed_points", {"residual": residuals, "relative_residual": relative, "point": index,
                              "distance": distance, "evaluations": search.evaluations.cpu().numpy()},
        outcomes, settings=settings, labels={"context": search.contexts.numpy()})
    return FixedPoints(
        points=search.states[at].reshape(-1, *shape), contexts=search.contexts.numpy()[first],
        counts=np.array([int((point == p).sum()) for p in first], dtype=int), residuals=residuals[first],
        distances=distance[first], states=search.states.reshape(-1, *shape), measurement=measurement)
