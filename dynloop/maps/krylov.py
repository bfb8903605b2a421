"""Leading eigenvalues of many linear operators at once, each known only by its products with vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
import torch

Operator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_CHECK_EVERY = 4  # products between two looks at convergence: an eigenproblem of the subspace a row and look
_GUARD = 12  # products in a fresh direction after the first convergence: one start vector sees no eigenvalue twice
_ROUNDING = 30  # spacings of the number format by which a product is off, relative to the largest ones
_SAFETY = 0.3  # the estimated residual must be this much below the tolerance, so that the true one is below it, too


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """What `leading_eigenvalues` found, a row an operator.

    Attributes:
        values: (n, k) complex, largest modulus first; NaN where the row did not converge.
        residuals: (n, k), ||A x - value x|| / |value| for unit x, from one more product each. Where |value| is so small
            that rounding alone exceeds the tolerance, relative to the least |value| where it does not.
        converged: (n,) bool.
        finite: (n,) bool, False where a product was not a finite number.
        vectors: (n, dim), real: of the first eigenvector its part of largest norm, of length 1.
        products: (n,) products spent.
        subspaces: a row (basis (m, dim), projection (m, m)) at the end, where asked for.
    """

    values: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    finite: np.ndarray
    vectors: torch.Tensor
    products: np.ndarray
    subspaces: dict[int, tuple[torch.Tensor, np.ndarray]]


def by_modulus(values: np.ndarray) -> np.ndarray:
    """Order of eigenvalues (..., k): largest modulus first, then the larger real part, then the upper half plane."""
    size = np.abs(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        coarse = np.round(size / np.where(size.max(-1, keepdims=True) > 0, size.max(-1, keepdims=True), 1.0), 10)
    return np.lexsort((-values.imag, -values.real, -coarse), axis=-1)


def random_vector(seed: int, number: int, dim: int) -> torch.Tensor:
    """Normal (dim,); the same for every row, so that a row does not depend on those beside it."""
    return torch.from_numpy(np.random.default_rng([seed, number]).standard_normal(dim))


def leading_eigenvalues(operator: Operator, n: int, dim: int, *, k: int, tolerance: float, seed: int,
                        dtype: torch.dtype, device: torch.device, subspace: int = 40, max_products: int = 2000,
                        start: torch.Tensor | None = None, keep_subspaces: bool = False) -> Eigenpairs:
    """The k eigenvalues of largest modulus of n real operators, by restarted Arnoldi iteration (Krylov-Schur).

    All rows advance together, one product each a step; a row that has converged leaves the batch. Blocks of vectors
    would make use of tangents that are cheap together, but 2 need 1.4 times the products of 1, and 4 two to six times
    (in the same subspace): tried, and no gain.

    Args:
        operator: (rows (r,) whole numbers, vectors (j, r, dim)) -> products (j, r, dim) of the operators of these rows.
        n, dim: operators, and their dimension, more than `subspace`.
        k: eigenvalues; a conjugate pair at the end is found whole, and cut.
        tolerance: of ||A x - value x|| / |value|.
        seed: of the start vectors.
        dtype, device: of the vectors.
        subspace: vectors kept a row.
        max_products: after so many a row is given up.
        start: first vectors (n, dim).
        keep_subspaces: whether to return them.

    Source:
        Stewart 2002 (SIAM J. Matrix Anal. Appl. 23:601).
    """
    found = Eigenpairs(np.full((n, k), complex(np.nan, np.nan)), np.full((n, k), np.nan), np.zeros(n, dtype=bool),
                       np.ones(n, dtype=bool), torch.zeros(n, dim, dtype=dtype, device=device),
                       np.zeros(n, dtype=int), {})
    epsilon = torch.finfo(dtype).eps
    if start is None:
        start = random_vector(seed, 0, dim).expand(n, dim)
    start = start.to(device, dtype)
    alive = np.arange(n)
    basis = torch.zeros(n, subspace + 1, dim, dtype=dtype, device=device)
    basis[:, 0] = start / start.norm(dim=-1, keepdim=True)
    projected = np.zeros((n, subspace + 1, subspace))
    at, checked, hold = (np.zeros(n, dtype=int) for _ in range(3))
    sure = np.ones(n, dtype=bool)
    locked = [np.zeros(0)] * n  # moduli that had converged when a row last took a fresh direction
    while len(alive):
        _extend(operator, alive, basis, projected, at, found, seed, epsilon)
        checked += 1
        due = ((checked >= _CHECK_EVERY) & (at >= k + 2)) | (at == subspace) | ~found.finite[alive]
        leaving: list[tuple[int, np.ndarray, np.ndarray, float]] = []
        gone = ~found.finite[alive]
        for i in np.flatnonzero(due & ~gone):
            checked[i], m = 0, at[i]
            values, vectors = np.linalg.eig(projected[i, :m, :m])
            order = by_modulus(values)
            values, vectors = values[order].astype(complex), vectors[:, order].astype(complex)
            wanted = _whole(values, k)
            floor = _ROUNDING * epsilon * np.abs(projected[i, :m + 1, :m]).max() / tolerance
            residual = np.abs(projected[i, m, :m] @ vectors[:, :wanted])
            small = residual <= _SAFETY * tolerance * np.maximum(np.abs(values[:wanted]), floor)
            spent = int(found.products[alive[i]])
            if small.all() and k > 1 and spent < max_products and not (
                    len(locked[i]) == wanted and np.allclose(locked[i], np.abs(values[:wanted]))):
                locked[i] = np.abs(values[:wanted])
                if kept := _keep(basis[i], projected[i], m, [wanted]) or \
                        _keep(basis[i], projected[i], m, range(1, wanted)):
                    projected[i, kept] = 0  # the residuals that are dropped are within the tolerance
                    fresh = random_vector(seed, spent, dim).to(basis)[None]
                    fresh = _orthogonal(basis[i:i + 1, :kept], fresh / fresh.norm())[0][0]
                    basis[i, kept] = fresh / fresh.norm()
                    at[i], hold[i] = kept, min(kept + _GUARD, subspace)
                    continue
            if small.all() and m >= hold[i]:
                leaving.append((int(i), values[:wanted], vectors[:, :wanted], floor))
                sure[alive[i]] = _off_by(projected[i, :m, :m], values[:k], tolerance, floor) <= 30 * tolerance ** 0.5
                gone[i] = True
            elif spent >= max_products:
                gone[i] = True
            elif m == subspace:
                least = min(max(wanted + 2, m // 2), m - 3)
                at[i] = _keep(basis[i], projected[i], m, range(least, min(least + m // 4, m - 3) + 1))
                gone[i] = at[i] == 0
                hold[i] = 0
        if leaving:
            _verify(operator, alive, basis, leaving, found, k, tolerance)
        if keep_subspaces:
            for i in np.flatnonzero(gone & found.finite[alive]):
                m = at[i]
                found.subspaces[int(alive[i])] = basis[i, :m].clone(), projected[i, :m, :m].copy()
        if gone.any():
            stay = np.flatnonzero(~gone)
            alive, at, checked, projected = alive[stay], at[stay], checked[stay], projected[stay]
            hold, locked = hold[stay], [locked[i] for i in stay]
            basis = basis[torch.as_tensor(stay, device=device)]
    found.converged[~sure] = False
    found.values[~sure] = complex(np.nan, np.nan)
    return found


def _off_by(projected: np.ndarray, wanted: np.ndarray, tolerance: float, floor: float) -> float:
    """How far residuals within the tolerance allow the eigenvalues to be off, relative, as far as the subspace shows.

    Each is moved by the change of the matrix, of that size, which moves it most: by about the tolerance in a map that
    is nearly normal, by its root where two eigenvalues share an eigenvector, and by more where residuals prove nothing.
    """
    values, left, right = scipy.linalg.eig(projected, left=True, right=True)
    worst = tolerance
    for value in wanted:
        i = int(np.abs(values - value).argmin())
        if abs(left[:, i].conj() @ right[:, i]) > 1e-3:
            continue
        size = max(abs(value), floor, np.finfo(float).tiny)
        moved = np.linalg.eigvals(projected + tolerance * size * np.outer(left[:, i], right[:, i].conj()))
        worst = max(worst, np.abs(moved - value).min() / size)
    return float(worst)


def _extend(operator: Operator, alive: np.ndarray, basis: torch.Tensor, projected: np.ndarray, at: np.ndarray,
            found: Eigenpairs, seed: int, epsilon: float) -> None:
    """One more vector for every row: the product with the last one, made orthogonal to all before."""
    rows, last = torch.arange(len(alive), device=basis.device), torch.as_tensor(at, device=basis.device)
    product = operator(torch.as_tensor(alive), basis[rows, last][None])[0]
    found.products[alive] += 1
    size = product.norm(dim=-1)
    found.finite[alive] &= torch.isfinite(size).cpu().numpy()
    product = torch.nan_to_num(product)
    known = basis[:, :int(at.max()) + 1]
    rest, coefficients = _orthogonal(known, product)
    length = rest.norm(dim=-1)
    lost = length <= 10 * epsilon * size  # the space is invariant: go on in a new direction, which it does not reach
    if bool(lost.any()):
        for i in torch.nonzero(lost).flatten().tolist():
            fresh = random_vector(seed, int(found.products[alive[i]]), basis.shape[-1]).to(basis)[None]
            rest[i] = _orthogonal(known[i:i + 1], fresh / fresh.norm())[0][0]
    basis[rows, last + 1] = rest / rest.norm(dim=-1, keepdim=True)
    h = coefficients.double().cpu().numpy()
    beta = torch.where(lost, 0.0, length.double()).cpu().numpy()
    for i, m in enumerate(at):
        projected[i, :m + 1, m] = h[i, :m + 1]
        projected[i, m + 1, m] = beta[i]
    at += 1


def _orthogonal(basis: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left of vectors (r, dim) beside a basis (r, m, dim), and the coefficients (r, m) of what is taken off."""
    total = torch.zeros_like(basis[..., 0])
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        share = torch.bmm(basis, vectors[..., None])
        vectors = vectors - torch.bmm(basis.mT, share)[..., 0]
        total = total + share[..., 0]
    return vectors, total


def _whole(values: np.ndarray, k: int) -> int:
    """How many of the ordered values hold the first k and split no conjugate pair."""
    pairs = int((np.abs(values[:k].imag) > 0).sum())
    return min(k + pairs % 2, len(values))


def _keep(basis: torch.Tensor, projected: np.ndarray, m: int, choices: Sequence[int]) -> int:
    """Reduce the first m vectors to the leading part of the Schur form, in place, and say how many are left.

    Cut at that of the choices where moduli lie farthest apart, so that pairs and ties stay together; 0, and nothing
    done, where no choice parts them.
    """
    schur, sizes = None, np.sort(np.abs(np.linalg.eigvals(projected[:m, :m])))[::-1]
    choices = [c for c in choices if c < m]
    for cut in sorted(choices, key=lambda c: sizes[c] - sizes[c - 1]):
        border = (sizes[cut - 1] + sizes[cut]) / 2
        try:
            schur, turn, kept = scipy.linalg.schur(projected[:m, :m],
                                                   sort=lambda re, im, border=border: np.hypot(re, im) > border)
        except np.linalg.LinAlgError:  # moved across the border while they were sorted
            continue
        if kept in choices:
            break
    else:
        return 0
    spike = projected[m, :m] @ turn
    basis[:kept] = torch.as_tensor(turn[:, :kept].T.copy()).to(basis) @ basis[:m]
    basis[kept] = basis[m].clone()
    basis[kept + 1:] = 0
    projected[:] = 0
    projected[:kept, :kept] = schur[:kept, :kept]
    projected[kept, :kept] = spike[:kept]
    return int(kept)


def _verify(operator: Operator, alive: np.ndarray, basis: torch.Tensor,
            leaving: list[tuple[int, np.ndarray, np.ndarray, float]], found: Eigenpairs, k: int,
            tolerance: float) -> None:
    """One more product with each vector of the invariant subspace: true residuals, not estimated ones."""
    most = max(len(values) for _, values, *_ in leaving)
    turns, spans = [], torch.zeros(most, len(leaving), basis.shape[-1], dtype=basis.dtype, device=basis.device)
    for j, (i, values, vectors, _) in enumerate(leaving):
        # a real basis of the span: of a conjugate pair, real and imaginary part
        parts = np.concatenate([vectors.real[:, values.imag >= 0], vectors.imag[:, values.imag > 0]], axis=1)
        turn = np.linalg.qr(parts[:, :len(values)])[0]
        turns.append(turn)
        spans[:turn.shape[1], j] = torch.as_tensor(turn.T.copy()).to(basis) @ basis[i, :len(turn)]
    rows = np.array([alive[i] for i, *_ in leaving])
    products = operator(torch.as_tensor(rows), spans)
    found.products[rows] += [len(values) for _, values, *_ in leaving]
    for j, (row, (_, values, vectors, floor)) in enumerate(zip(rows, leaving, strict=True)):
        inside = turns[j].T @ vectors
        span, product = (x[:len(values), j].double() for x in (spans, products))
        # ||A x - value x|| from inner products in the small space would cancel: take it from the vectors
        c = torch.as_tensor(inside).to(basis.device)
        x = [part.T.contiguous() @ span for part in (c.real, c.imag)]
        ax = [part.T.contiguous() @ product for part in (c.real, c.imag)]
        re, im = (torch.as_tensor(part.copy()).to(basis.device)[:, None] for part in (values.real, values.imag))
        off = torch.hypot((ax[0] - re * x[0] + im * x[1]).norm(dim=-1), (ax[1] - re * x[1] - im * x[0]).norm(dim=-1))
        size = torch.hypot(x[0].norm(dim=-1), x[1].norm(dim=-1))
        residual = (off / size).cpu().numpy() / np.maximum(np.abs(values), max(floor, np.finfo(float).tiny))
        found.residuals[row] = residual[:k]
        found.finite[row] &= bool(np.isfinite(residual).all())
        found.converged[row] = (residual <= tolerance).all()
        if found.converged[row]:
            found.values[row] = values[:k]
        first = x[0][0] if float(x[0][0].norm()) >= float(x[1][0].norm()) else x[1][0]
        found.vectors[row] = (first / first.norm()).to(basis.dtype)


def chunks(n: int, row_bytes: int, budget: int = 2**28) -> list[slice]:
    """Rows in pieces whose vectors fit the budget."""
    size = max(1, budget // max(row_bytes, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
