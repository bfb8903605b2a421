"""How a map stretches and turns small differences in one step: four different numbers, told apart."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch

from dynloop.maps.arguments import check_loop_map, check_repeats, check_tensor
from dynloop.maps.krylov import Operator, by_modulus, chunks, leading_eigenvalues
from dynloop.maps.loop_map import LoopMap
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

_NUMBERS = 2**22  # in the tangents that go through the map together
_SUBSPACE = 40  # vectors kept in the iteration
_A_VALUE_EACH = ("eigenvalues_real", "eigenvalues_imag", "residuals")
_ROUNDS = 8  # searches for the power of largest norm


def jacobian_spectrum(loop_map: LoopMap, states: torch.Tensor, contexts: torch.Tensor | None = None, *,
                      n_eigenvalues: int | None = None, n_probes: int = 16, n_powers: int = 32,
                      tolerance: float | None = None, dense_up_to: int = 256, max_products: int = 2000,
                      rng: int | np.random.Generator = 0, labels: Mapping[str, Any] | None = None) -> Measurement:
    r"""Spectral radius, operator norm, rms gain and departure from normality of the Jacobian at each state.

    With J = dF/dx (n x n, n numbers in the whole state; a sequence of tokens is one state), eigenvalues lambda_i and
    singular values sigma_i:

    * spectral radius max |lambda_i|: the asymptotic factor a step at a fixed point;
    * operator norm max sigma_i: the most that one step can stretch a difference;
    * rms gain ||J||_F / sqrt(n), the root mean square of sigma_i: what one step does to a random difference;
    * departure from normality (Henrici) sqrt(||J||_F^2 - sum |lambda_i|^2), zero where eigenvectors are orthogonal;
    * transient growth max_k ||J^k||: how far small differences grow before the spectral radius rules.

    Up to `dense_up_to` dimensions J is built whole, and all of these are exact. Above, J is known by its products
    alone: eigenvalues by restarted Arnoldi iteration, the operator norm by the same on J^T J, the rms gain by random
    probes (Hutchinson), and departure and transient growth by bounds.

    Args:
        loop_map: the map.
        states: (n, *state_shape), one row a point at which to linearise.
        contexts: (n,) context of each row; by default row i is in context i modulo `loop_map.n_contexts`.
        n_eigenvalues: eigenvalues of largest modulus; by default 4, or the dimension where that is less.
        n_probes: random vectors, above `dense_up_to` dimensions.
        n_powers: k = 1 ... n_powers in the transient growth.
        tolerance: ||J v - lambda v|| / |lambda| that every eigenvalue must meet; by default 1e-12 in float64, 3.6e-5 in
            float32. The operator norm is as good.
        dense_up_to: dimensions up to which J is built.
        max_products: of J with a vector, a row and question; then the row is given up.
        rng: seed or generator of start vectors and probes, which all rows share.
        labels: of the rows.

    Returns:
        A row a state: `spectral_radius`; `eigenvalues_real` and `eigenvalues_imag` (n, n_eigenvalues), largest modulus
        first; `residuals` (n, n_eigenvalues), the ||J v - lambda v|| / |lambda| that were reached (kept where not
        found); `operator_norm`; `rms_gain` and its standard error `rms_gain_error` (0 where exact); `departure_low` and
        `departure_high`, equal where exact; `transient_growth`, and `transient_step`, the k where it is reached;
        `n_products`, Jacobian-vector and vector-Jacobian products spent (kept where not found). `NOT_FINITE`: state or
        Jacobian. `NOT_CONVERGED`: an eigenvalue or the operator norm missed the tolerance.

    Raises:
        ValueError: settings or shapes that do not fit; a map in half precision; a map whose vector-Jacobian product is
            not the adjoint of its Jacobian-vector product (a block that runs without gradients: its answer is 0).

    Misleads:
        The four numbers answer four questions. An operator norm above 1 does not mean that the loop is unstable (one of
        5 is common at points where it settles), and a small rms gain does not mean that it is stable: one mode of 1.5
        among 400 of .3 gives .31. Eigenvalues describe the loop only at its fixed points; along an orbit ask
        `cycle_multipliers` or Lyapunov exponents. Where the state is normalised at the end of the loop, one direction a
        token has eigenvalue 0. Above `dense_up_to`, `departure_low` and `departure_high` bound the departure up to the
        sampling error of the probes, and may lie far apart; `transient_growth` is a lower bound from a local search
        over k; and the eigenvalue of a nearly defective J is known to the root of the residual only. With a spectral
        radius above 1 the powers grow for ever, and transient growth is that at n_powers (infinite on overflow).

    Source:
        Stewart 2002 (SIAM J. Matrix Anal. Appl. 23:601): Arnoldi, restarted; Hutchinson 1990 (Comm. Stat. 19:433);
        Henrici 1962 (Numer. Math. 4:24); Kress, de Vries and Wegmann 1974 (Linear Algebra Appl. 8:109): sum |lambda|^2
        <= sqrt(||J||_F^4 - ||J^T J - J J^T||_F^2 / 2); Trefethen and Embree 2005, Spectra and Pseudospectra.

    Example:
        >>> import torch
        >>> from dynloop.maps.jacobian_spectrum import jacobian_spectrum
        >>> from dynloop.maps.loop_map import LoopMap
        >>> sheared = torch.tensor([[0.8, 20.0], [0.0, 0.8]], dtype=torch.float64)
        >>> m = jacobian_spectrum(LoopMap(lambda x, contexts: x @ sheared.T, (2,)), torch.zeros(1, 2))
        >>> for name in ("spectral_radius", "operator_norm", "rms_gain", "transient_growth", "transient_step"):
        ...     print(name, m[name].round(2))
        spectral_radius [0.8]
        operator_norm [20.03]
        rms_gain [14.16]
        transient_growth [40.96]
        transient_step [4.]
    """
    check_loop_map("loop_map", loop_map)
    check_tensor("states", states)
    n_eigenvalues = check_spectrum(loop_map.dim, n_eigenvalues, dense_up_to, max_products, "n_eigenvalues", 4)
    settings = {"n_eigenvalues": n_eigenvalues, "n_probes": n_probes, "n_powers": n_powers,
                "tolerance": default_tolerance(loop_map, tolerance), "dense_up_to": dense_up_to,
                "max_products": max_products}
    check_whole("n_probes", n_probes, 2, "a whole number of at least 2 probes (the default is 16)")
    check_whole("n_powers", n_powers, 1, "a whole number of at least 1 (the default is 32)")
    points = JacobianChain([loop_map], states[None], contexts)
    n, dim = points.n, points.dim
    seed = int(np.random.default_rng(rng).integers(2**31))
    table = {name: np.full((n, n_eigenvalues) if name in _A_VALUE_EACH else n, np.nan) for name in (
        "spectral_radius", *_A_VALUE_EACH, "operator_norm", "rms_gain", "rms_gain_error", "departure_low",
        "departure_high", "transient_growth", "transient_step", "n_products")}
    outcomes = np.full(n, Outcome.FOUND, dtype=object)
    outcomes[~points.finite] = Outcome.NOT_FINITE
    table["n_products"][~points.finite] = 0
    dense = is_dense(dim, dense_up_to)
    with points.held():
        for part in chunks(n, points.row_bytes(dim if dense else 3 * _SUBSPACE)):
            rows = np.arange(n)[part][points.finite[part]]
            if not len(rows):
                continue
            if dense:
                for row, jacobian in zip(rows, points.dense(rows), strict=True):
                    answer = _exact(jacobian, n_eigenvalues, n_powers) if np.isfinite(jacobian).all() else None
                    outcomes[row] = Outcome.FOUND if answer else Outcome.NOT_FINITE
                    for name, value in (answer or {}).items():
                        table[name][row] = value
                    table["n_products"][row] = dim
            else:
                answers, outcomes[rows] = _by_products(points, rows, settings, seed)
                for name, values in answers.items():
                    table[name][rows] = values
    missing = outcomes != Outcome.FOUND
    for name, values in table.items():
        if name not in ("residuals", "n_products"):
            values[missing] = np.nan
    return Measurement("jacobian_spectrum", table, outcomes, settings=settings, labels=labels or {},
                       units={"spectral_radius": "per step", "transient_step": "steps"})


def default_tolerance(loop_map: LoopMap, tolerance: float | None) -> float:
    """The tolerance of a residual in the map's number format."""
    if loop_map.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Jacobians need float32 or float64; {loop_map.name} computes in {loop_map.dtype}. "
                         "Make it in float64.")
    if tolerance is None:
        return 1e-12 if loop_map.dtype == torch.float64 else 300 * torch.finfo(torch.float32).eps
    check_number("tolerance", tolerance, lambda v: 0 < v < 1, "a number between 0 and 1, or None (1e-12 in float64)")
    return float(tolerance)


def check_spectrum(dim: int, count: int | None, dense_up_to: Any, max_products: Any, name: str, usual: int) -> int:
    """Settings that all spectra share; gives how many eigenvalues to find."""
    check_whole("dense_up_to", dense_up_to, 0, "a number of dimensions of at least 0 (the default is 256)")
    check_whole("max_products", max_products, 1, "a whole number of products of at least 1")
    count = min(usual, dim) if count is None else count
    check_whole(name, count, 1, f"a whole number from 1 to the dimension, {dim}")
    if count > dim:
        raise ValueError(f"{name} must be a whole number from 1 to the dimension, {dim}; got {count!r}.")
    if count > _SUBSPACE // 2 and not is_dense(dim, dense_up_to):
        raise ValueError(f"{name} must be at most {_SUBSPACE // 2} where the Jacobian is not built; got {count!r}. "
                         f"For all {dim} of them, pass dense_up_to={dim}.")
    return count


def is_dense(dim: int, dense_up_to: int) -> bool:
    """Whether the Jacobian is built: always where it is hardly larger than the subspace of the iteration."""
    return dim <= max(dense_up_to, _SUBSPACE + 1)


def dense_eigenvalues(jacobian: np.ndarray, count: int) -> np.ndarray:
    """The leading eigenvalues of a matrix (dim, dim)."""
    values = np.linalg.eigvals(jacobian)
    return values[by_modulus(values)][:count].astype(complex)


class JacobianChain:
    """Products with J_p ... J_2 J_1, the Jacobians along p states of each of n rows, and with the transpose.

    Args:
        maps: map j (modulo how many there are) is linearised at state j.
        states: (p, n, *state_shape).
        contexts: (n,).
    """

    def __init__(self, maps: Sequence[LoopMap], states: torch.Tensor, contexts: torch.Tensor | None) -> None:
        self.maps, first = maps, maps[0]
        check_tensor("states", states)
        if states.ndim != 2 + len(first.state_shape) or tuple(states.shape[2:]) != first.state_shape or \
                not states.shape[1]:
            raise ValueError(f"{first.name} needs states (n, {', '.join(map(str, first.state_shape))}) with n of at "
                             f"least 1; got {tuple(states.shape[1:])}. One state? Pass state[None].")
        self.n, self.dim = states.shape[1], first.dim
        self.states = states.to(first.device, first.dtype)
        if contexts is None:
            contexts = torch.arange(self.n) % first.n_contexts
        contexts = torch.as_tensor(contexts)
        if contexts.shape != (self.n,):
            raise ValueError(f"contexts must hold one number a state, ({self.n},); got {tuple(contexts.shape)}.")
        self.contexts = contexts
        for one, own in self.steps():
            check_repeats(one, own, contexts)
        self.finite = torch.isfinite(self.states).flatten(2).all(-1).all(0).cpu().numpy()

    def row_bytes(self, vectors: int) -> int:
        return self.dim * vectors * self.states.element_size()

    def held(self) -> contextlib.AbstractContextManager:
        """Within it one map's model stays lent between products, which saves time where they are many."""
        return self.maps[0].held() if len(self.maps) == 1 else contextlib.nullcontext()

    def steps(self) -> list[tuple[LoopMap, torch.Tensor]]:
        return [(self.maps[j % len(self.maps)], x) for j, x in enumerate(self.states)]

    def forward(self, rows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """J v: vectors (j, r, dim) at rows (r,)."""
        return self._pushed(rows, vectors, [(one.jvps, states) for one, states in self.steps()])

    def backward(self, rows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """J^T w: vectors (j, r, dim) at rows (r,)."""
        return self._pushed(rows, vectors, [(one.vjps, states) for one, states in reversed(self.steps())])

    def _pushed(self, rows: torch.Tensor, vectors: torch.Tensor, along: list[tuple[Any, torch.Tensor]]) -> torch.Tensor:
        contexts, there = self.contexts[rows], rows.to(self.states.device)
        done = []
        for some in vectors.split(max(1, _NUMBERS // (len(rows) * self.dim))):
            shape = some.shape
            some = some.reshape(*shape[:2], *self.maps[0].state_shape)
            for product, states in along:
                some = product(states[there], some, contexts)[1]
            done.append(some.reshape(shape))
        return torch.cat(done)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """The products themselves, (r, dim, dim) in float64."""
        unit = torch.eye(self.dim, dtype=self.states.dtype, device=self.states.device)
        columns = self.forward(torch.as_tensor(rows), unit[:, None].expand(-1, len(rows), -1))
        return columns.permute(1, 2, 0).double().cpu().numpy()


def _exact(jacobian: np.ndarray, n_eigenvalues: int, n_powers: int) -> dict[str, Any]:
    """All answers from the matrix itself."""
    values = dense_eigenvalues(jacobian, n_eigenvalues)
    schur, turn = scipy.linalg.schur(jacobian)
    # departure from the triangle: ||J||^2 - sum |lambda|^2 would cancel; a pair's block [[a, b], [c, a]] has (b + c)^2
    below = np.diagonal(schur, -1)
    within = np.diagonal(schur, 1)
    pair = below != 0
    departure = math.sqrt(max((np.triu(schur, 1) ** 2).sum() - (within[pair] ** 2).sum(), 0.0)
                          + ((within + below)[pair] ** 2).sum())
    backward = np.linalg.norm(turn @ schur @ turn.T - jacobian, 2)
    growth, step, power = 0.0, 0, np.eye(len(jacobian))
    for k in range(1, n_powers + 1):
        power = jacobian @ power
        if not np.isfinite(power).all():
            growth, step = math.inf, k
            break
        # the Frobenius norm is an upper bound: most powers need no singular values
        if np.linalg.norm(power) > growth and (norm := np.linalg.norm(power, 2)) > growth * (1 + 1e-12):
            growth, step = float(norm), k
    norms = np.linalg.norm(jacobian, 2)
    return {"spectral_radius": abs(values[0]), "eigenvalues_real": values.real, "eigenvalues_imag": values.imag,
            "residuals": backward / np.maximum(np.abs(values), max(norms, np.finfo(float).tiny) * 1e-11),
            "operator_norm": norms, "rms_gain": np.linalg.norm(jacobian) / math.sqrt(len(jacobian)),
            "rms_gain_error": 0.0, "departure_low": departure, "departure_high": departure,
            "transient_growth": growth, "transient_step": step or 1}


def _gram(points: JacobianChain, rows: torch.Tensor, powers: np.ndarray) -> Operator:
    """(J^k)^T J^k of some rows, k a row's own."""
    ks = torch.as_tensor(powers)

    def operator(own: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        most = int(ks[own].max())
        for product, order in ((points.forward, range(1, most + 1)), (points.backward, range(most, 0, -1))):
            for k in order:
                some = torch.nonzero(ks[own] >= k).flatten()
                where = some.to(vectors.device)
                vectors = vectors.index_copy(1, where, product(rows[own[some]], vectors[:, where]))
        return vectors

    return operator


def _by_products(points: JacobianChain, rows: np.ndarray, settings: Mapping[str, Any],
                 seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All answers from products, for some rows."""
    index, n, tolerance = torch.as_tensor(rows), len(rows), settings["tolerance"]
    search = functools.partial(leading_eigenvalues, dim=points.dim, seed=seed, dtype=points.states.dtype,
                               device=points.states.device, max_products=settings["max_products"], subspace=_SUBSPACE)
    eigen = search(lambda own, vectors: points.forward(index[own], vectors), n, k=settings["n_eigenvalues"],
                   tolerance=tolerance, keep_subspaces=True)
    # a symmetric eigenvalue is known to the square of its residual
    steepest = functools.partial(search, k=1, tolerance=math.sqrt(tolerance) / 10)
    largest = steepest(_gram(points, index, np.ones(n, dtype=int)), n)
    norms = points.forward(index, largest.vectors[None])[0].double().norm(dim=-1).cpu().numpy()
    spent = 1.0 + eigen.products + 2 * largest.products
    met, finite = largest.converged & eigen.converged, largest.finite & eigen.finite & np.isfinite(norms)
    _check_adjoint(points.maps[0], norms, np.sqrt(np.abs(largest.values[:, 0])), largest.converged)
    outcomes = np.full(n, Outcome.NOT_CONVERGED, dtype=object)
    outcomes[met], outcomes[~finite] = Outcome.FOUND, Outcome.NOT_FINITE
    answers = {"spectral_radius": np.abs(eigen.values[:, 0]), "eigenvalues_real": eigen.values.real,
               "eigenvalues_imag": eigen.values.imag, "residuals": eigen.residuals, "operator_norm": norms}
    good = np.flatnonzero(met & finite)
    if len(good):
        for part in (_probed(points, index[good], settings["n_probes"], seed, np.abs(eigen.values[good]),
                             largest.vectors[good]),
                     _transient(points, index[good], [eigen.subspaces[int(i)] for i in good], largest.vectors[good],
                                norms[good], settings["n_powers"], functools.partial(steepest, tolerance=1e-3))):
            spent[good] += part.pop("n_products")
            for name, values in part.items():
                answers.setdefault(name, np.full(n, np.nan))[good] = values
    return answers | {"n_products": spent}, outcomes


def _check_adjoint(loop_map: LoopMap, stretched: np.ndarray, found: np.ndarray, converged: np.ndarray) -> None:
    """||J v|| = sqrt(v . J^T J v), or the two products are of different maps."""
    wrong = converged & ~np.isclose(stretched, found, rtol=1e-2, atol=1e-6 * (1 + np.nanmax(np.append(found, 0))))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"the vector-Jacobian product of {loop_map.name} is not the adjoint of its Jacobian-vector "
                         f"product: ||J v|| = {stretched[i]:.6g}, sqrt(v . J^T J v) = {found[i]:.6g}. Does part of the "
                         "block run without gradients? Give the map the block itself, not the model's own loop.")


def _probed(points: JacobianChain, rows: torch.Tensor, n_probes: int, seed: int, moduli: np.ndarray,
            steepest: torch.Tensor) -> dict[str, Any]:
    """Rms gain with its standard error, and bounds on the departure from normality, by random signs.

    The direction that J stretches most, and the one that it becomes, are taken out of the probes and added exactly:
    else one large singular value would drown the sum (Meyer et al. 2021, Hutch++).
    """
    into = points.forward(rows, steepest[None])[0]
    into = torch.where(into.norm(dim=-1, keepdim=True) > 0, into, steepest)
    plane = torch.linalg.qr(torch.stack([steepest, into], dim=-1))[0].mT  # (r, 2, dim)
    signs = np.random.default_rng([seed, 2**31]).choice([-1.0, 1.0], size=(n_probes, points.dim))
    probes = torch.from_numpy(signs).to(plane)[:, None]  # (n_probes, 1, dim), the same for all rows
    probes = probes - torch.einsum("pud,rkd,rke->pre", probes, plane, plane)
    vectors = torch.cat([plane.transpose(0, 1), probes])
    ahead, back = points.forward(rows, vectors), points.backward(rows, vectors)
    commutator = (points.backward(rows, ahead) - points.forward(rows, back)).double()
    ahead, back = ahead.double(), back.double()

    def summed(each: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """A trace and its standard error, from its forms in the plane (2) and in the probes."""
        values = each.sum(-1).cpu().numpy()
        return values[:2].sum(0) + values[2:].mean(0), values[2:].std(0, ddof=1) / math.sqrt(n_probes)

    total, error = summed(ahead.square())  # ||J||_F^2
    gain = np.sqrt(total / points.dim)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain_error = np.where(gain > 0, error / (2 * gain * points.dim), 0.0)
    # sum |lambda|^2 is at least |trace J^2|, and at least what the leading ones give
    least = np.maximum(np.abs(summed(ahead * back)[0]), (moduli**2).sum(-1))
    most = np.sqrt(np.maximum(total**2 - summed(commutator.square())[0] / 2, 0))
    high = np.sqrt(np.maximum(total - least, 0))
    return {"rms_gain": gain, "rms_gain_error": gain_error, "departure_high": high,
            "departure_low": np.minimum(np.sqrt(np.maximum(total - most, 0)), high),
            "n_products": 1 + 4 * (n_probes + 2)}


def _transient(points: JacobianChain, rows: torch.Tensor, subspaces: Sequence[tuple[torch.Tensor, np.ndarray]],
               stretched: torch.Tensor, norms: np.ndarray, n_powers: int, steepest: Any) -> dict[str, Any]:
    """Largest ||J^k||: where J within the Krylov space says that it is, and uphill from there."""
    growth, step, spent = norms.copy(), np.ones(len(rows)), np.zeros(len(rows))
    guesses = stretched.clone()
    for i, (basis, projected) in enumerate(subspaces):
        best, power = 0.0, np.eye(len(projected))
        for _ in range(n_powers):
            power = projected @ power
            if not np.isfinite(power).all():
                break
            if np.linalg.norm(power) > best and (size := np.linalg.norm(power, 2)) > best:
                best = float(size)
                guesses[i] = torch.as_tensor(np.linalg.svd(power)[2][0].copy()).to(basis) @ basis
    starts, todo = torch.stack([stretched, guesses]), np.arange(len(rows))
    for _ in range(_ROUNDS):
        vectors, profile = starts, np.empty((n_powers, len(starts), len(todo)))
        for j in range(n_powers):  # ||J^k v|| for k = j + 1
            vectors = points.forward(rows[todo], vectors)
            profile[j] = vectors.double().norm(dim=-1).cpu().numpy()
        spent[todo] += n_powers * len(starts)
        flat = np.nan_to_num(profile.reshape(-1, len(todo)), nan=0.0, posinf=0.0)
        powers, which = np.unravel_index(flat.argmax(0), profile.shape[:2])
        higher, at = flat.max(0) > growth[todo] * (1 + 1e-9), step[todo].astype(int)
        growth[todo], step[todo] = np.where(higher, flat.max(0), growth[todo]), np.where(higher, powers + 1, at)
        # climb from a new top, and one power on from the old one: vectors of this power need not be those of the next
        k = np.where(higher, powers + 1, at + 1)
        some = np.flatnonzero(k <= n_powers)
        if not len(some):
            break
        starts = starts[torch.as_tensor(which), torch.arange(len(todo))][torch.as_tensor(some)]
        found = steepest(_gram(points, rows[todo[some]], k[some]), len(some), start=starts)
        spent[todo[some]] += 2 * k[some] * found.products
        with np.errstate(invalid="ignore"):
            value = np.nan_to_num(np.sqrt(np.abs(found.values[:, 0])))
        better = value > growth[todo[some]] * (1 + 1e-9)
        on = np.flatnonzero(better)
        todo, starts = todo[some[on]], found.vectors[torch.as_tensor(on)][None]
        growth[todo], step[todo] = value[on], k[some[on]]
        if not len(todo):
            break
    return {"transient_growth": growth, "transient_step": step, "n_products": spent}
