"""The searches behind `find_fixed_points`: plain and accelerated iteration, Newton's method, GMRES on rows."""

from __future__ import annotations

import math

import numpy as np
import torch

from dynloop.maps.anderson_memory import Memory
from dynloop.maps.loop_map import LoopMap

JVP = 2  # evaluations that one Jacobian-vector product counts as: the block and its tangent
_ROUNDING = math.sqrt(0.541 / 12)  # rms error of a rounded state, in spacings of its number format
_FLOOR = 8.0  # spacings of the number format at the norm of the state: a residual below may be rounding
_PATIENCE = 15  # evaluations without a tenth off the lowest residual, after which a search changes its ways
_POOR = 0.9  # a Newton step that leaves more of the residual than this is poor
_FAR = 0.3  # how well to solve far from a solution: to this, with half as many tangents
TANGENTS = 40  # tangents of one linear solve


class Search:
    """What is known of every start, and the map on rows (n, dim) of flattened states."""

    def __init__(self, map: LoopMap, contexts: torch.Tensor, tolerance: float, eps: float,
                 starts: torch.Tensor) -> None:
        self.map, self.contexts, self.tolerance, self.eps = map, contexts, tolerance, eps
        n, device = len(starts), starts.device
        self.start_norms, self.image_norms = norm(starts), torch.full((n,), math.nan, device=device,
                                                                      dtype=starts.dtype)
        self.states, self.images = starts.clone(), starts.clone()  # of lowest residual, and F of them
        self.residuals = torch.full((n,), math.inf, device=device, dtype=starts.dtype)
        self.evaluations = torch.zeros(n, dtype=torch.int64, device=device)
        self.stale = torch.zeros(n, dtype=torch.int64, device=device)  # evaluations since progress
        self.mark = self.residuals.clone()  # residual at the last progress
        self.broken = torch.zeros(n, dtype=torch.bool, device=device)  # not finite

    def image(self, states: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """F of some states; they and their contexts were checked once, and a call of the map would check them anew."""
        whole = states if len(self.map.state_shape) == 1 else states.view(-1, *self.map.state_shape)
        with self.map._running(contexts, "kernel"):
            return self.map.function(whole, contexts).detach().reshape(states.shape).to(states)

    def apply(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """F of one state for each of the rows; counted."""
        self.evaluations[rows] += 1
        return self.image(states, self.contexts[rows.cpu()])

    def tangent(self, states: torch.Tensor, tangents: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """J v of some states."""
        shape = (-1, *self.map.state_shape)
        return self.map.jvp(states.reshape(shape), tangents.reshape(shape), contexts)[1].reshape(states.shape)

    def keep(self, rows: torch.Tensor, states: torch.Tensor, images: torch.Tensor, residuals: torch.Tensor) -> None:
        """Keep what is lower than before, and note whether a tenth was won."""
        better = residuals < self.residuals[rows]
        own = rows[better]
        self.states[own], self.images[own], self.residuals[own] = states[better], images[better], residuals[better]
        won = residuals < 0.9 * self.mark[rows]
        self.stale[rows] = torch.where(won, 0, self.stale[rows] + 1)
        self.mark[rows] = torch.where(won, residuals, self.mark[rows])

    def leave(self, rows: torch.Tensor, states: torch.Tensor, images: torch.Tensor, residuals: np.ndarray,
              evaluations: np.ndarray, broken: np.ndarray, which: np.ndarray) -> None:
        """Note where some of the rows ended."""
        at = torch.as_tensor(which, device=rows.device)
        own = rows[at]
        self.states[own], self.images[own] = states[at], images[at]
        self.residuals[own] = torch.as_tensor(residuals[which]).to(self.residuals)
        self.evaluations[own] = torch.as_tensor(evaluations[which]).to(self.evaluations)
        self.broken[own] = torch.as_tensor(broken[which]).to(self.broken)

    def scale(self, rows: torch.Tensor) -> torch.Tensor:
        """Norm of the best state, at least the smaller of ||x_0|| and ||F(x_0)||, and the tolerance: 0 is a state."""
        least = torch.minimum(self.start_norms, self.image_norms)[rows].clamp(min=self.tolerance)
        return torch.maximum(norm(self.states[rows]), least)

    def rounding(self, rows: torch.Tensor) -> torch.Tensor:
        """What rounding the state alone does to it."""
        return _ROUNDING * self.eps * norm(self.states[rows])

    def apart(self, row: int) -> torch.Tensor:
        """Relative distance of one start's state to those of all in its context, (n,) on the host."""
        scale = self.scale(torch.arange(len(self.states), device=self.states.device))
        apart = norm(self.states - self.states[row]) / torch.maximum(scale, scale[row])
        return torch.where(self.contexts == self.contexts[row], apart.cpu().double().nan_to_num(math.inf), math.inf)

    def floor(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """A residual that may be rounding alone."""
        return _FLOOR * self.eps * torch.maximum(norm(states), torch.minimum(self.start_norms, self.image_norms)[rows])

    def at_floor(self, rows: torch.Tensor) -> torch.Tensor:
        return self.residuals[rows] <= self.floor(self.states[rows], rows)


def norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def fixed_point_iteration(search: Search, budget: int, memory: int) -> None:
    """Plain iteration (memory 0), or Anderson acceleration, of all rows until each is done.

    What is one number a row is decided on the host.
    """
    x, device = search.states, search.states.device
    n = len(x)
    rows, contexts = torch.arange(n, device=device), search.contexts
    past = Memory(x, memory) if memory else None
    x_before = g_before = best_x = best_g = x
    r_before = best = mark = np.full(n, np.inf)
    on, jumped = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)  # still searching; the last step was accelerated
    won, pause, penalty = np.zeros(n, dtype=int), np.zeros(n, dtype=int), np.ones(n, dtype=int)
    spent, failed = np.zeros(n, dtype=int), np.zeros(n, dtype=bool)
    everyone, some, nobody = True, rows, ~on
    for k in range(budget):
        if everyone:
            g = search.image(x, contexts)
        else:  # those that are done stay where they are until a quarter are
            g = x.clone()
            g[some] = search.image(x[some], contexts[some.cpu()])
        following, r = (g, norm(g - x).cpu().double().numpy()) if past is None else past.step(x, g)
        if not k:
            search.image_norms[:] = norm(g)
        ahead = r < 0.9 * mark
        well = everyone and bool(ahead.all())
        done = r <= search.tolerance
        if well:  # a tenth below the mark is lower than ever: nobody is broken, stale or worse than before
            best_x, best_g, best, mark = x, g, r, r
            won, broken, stale = nobody + k, nobody, nobody
        else:
            better = on & (r < best)
            at = torch.as_tensor(better, device=device)[:, None]
            best_x, best_g, best = torch.where(at, x, best_x), torch.where(at, g, best_g), np.where(better, r, best)
            won, mark = np.where(ahead, k, won), np.where(ahead, r, mark)
            broken = ~(np.isfinite(r) | jumped)
            stale = k - won > _PATIENCE
            done = on & (done | broken)
            if stale.any():
                done |= on & stale & (best <= search.floor(best_x, rows).cpu().double().numpy())
        if k + 1 == budget:
            done = on
        if done.any():
            spent[done], failed[done] = k + 1, broken[done]
            on = on & ~done
            everyone = 4 * on.sum() <= 3 * len(on)
            some = torch.as_tensor(on, device=device)
            if everyone:
                search.leave(rows, best_x, best_g, best, spent, failed, ~on)
                if not on.any():
                    return
                rows, x, g, following, x_before, g_before, best_x, best_g = (
                    part[some] for part in (rows, x, g, following, x_before, g_before, best_x, best_g))
                contexts = contexts[some.cpu()]
                r, r_before, best, mark, jumped, won, pause, penalty, stale, spent, failed = (
                    part[on] for part in (r, r_before, best, mark, jumped, won, pause, penalty, stale, spent, failed))
                if past is not None:
                    past.choose(some)
                on, nobody = on[on], ~on[on]
        if past is None:
            x = following
            continue
        some_lost = False
        if not well:
            worse = jumped & ~(r <= r_before)
            lost = worse | (stale & (pause == 0))
            some_lost = bool(lost.any())
            if some_lost:
                pause, penalty = np.where(lost, penalty, pause), np.where(lost, 2 * penalty, penalty)
                won = np.where(lost, k, won)
        plain = pause > 0
        if plain.any():
            following = torch.where(torch.as_tensor(plain, device=device)[:, None], g, following)
            pause = np.maximum(pause - 1, 0)
        if some_lost:  # where the step made it worse: back to where it was taken, plainly this time
            at = torch.as_tensor(worse, device=device)[:, None]
            following = torch.where(at, g_before, following)
            x, g, r = torch.where(at, x_before, x), torch.where(at, g_before, g), np.where(worse, r_before, r)
            past.forget(torch.as_tensor(lost, device=device), x, g)
        jumped = ~plain
        x, x_before, g_before, r_before = following, x, g, r


def newton_krylov(search: Search, budget: int) -> None:
    """Newton's method with GMRES and a line search, of all rows until each is done."""
    rows = torch.arange(len(search.states), device=search.states.device)
    x = search.states.clone()
    f = search.apply(x, rows) - x
    r = norm(f)
    search.image_norms[:] = norm(x + f)
    search.keep(rows, x, x + f, r)
    forcing = torch.full_like(r, _FAR)
    strikes = torch.zeros_like(rows)
    while True:
        finite = torch.isfinite(r)
        search.broken[rows[~finite]] = True
        left = ~(r <= search.tolerance) & finite & (search.evaluations[rows] < budget) \
            & ~((search.stale[rows] > _PATIENCE) & search.at_floor(rows))
        rows, x, f, r, forcing, strikes = (part[left] for part in (rows, x, f, r, forcing, strikes))
        if not len(rows):
            return
        # a linear solve that would end beyond the budget is cut short
        spare = ((budget - search.evaluations[rows]) // JVP).clamp(min=1)
        most = torch.where(forcing < _FAR, TANGENTS, TANGENTS // 2).minimum(spare)
        step = solve(search, x, f, rows, forcing, most)[0]
        y, f_new, r_new = x.clone(), f.clone(), r.clone()
        trying = torch.arange(len(rows), device=rows.device)
        length = 1.0
        while len(trying) and length > 1 / 100:
            own = rows[trying]
            trial = x[trying] + length * step[trying]
            image = search.apply(trial, own)
            f_trial = image - trial
            r_trial = norm(f_trial)
            search.keep(own, trial, image, r_trial)
            good = r_trial <= (1 - 1e-4 * length) * r[trying]
            at = trying[good]
            y[at], f_new[at], r_new[at] = trial[good], f_trial[good], r_trial[good]
            trying = trying[~good]
            length /= 2
        forcing = (0.9 * (r_new / r) ** 2).clamp(1e-3, _FAR)
        poor = r_new > _POOR * r
        if bool(poor.any()):
            own = rows[poor]
            strikes[poor] += 1
            y[poor] = _elsewhere(search, y[poor], y[poor] + f_new[poor], own, strikes[poor], budget)
            images = search.apply(y[poor], own)
            f_new[poor] = images - y[poor]
            r_new[poor] = norm(f_new[poor])
            search.keep(own, y[poor], images, r_new[poor])
            forcing[poor] = _FAR
        x, f, r = y, f_new, r_new


def _elsewhere(search: Search, x: torch.Tensor, images: torch.Tensor, rows: torch.Tensor, strikes: torch.Tensor,
               budget: int) -> torch.Tensor:
    """Where to try Newton's method next: 1, 2, 4, ... plain steps on at odd strikes, a random push at even ones."""
    x = torch.where((strikes % 2 == 1)[:, None], images, x)
    for strike in set(strikes[strikes % 2 == 0].tolist()):
        at = strikes == strike
        push = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(strike), dtype=torch.float64).to(x)
        x[at] += search.scale(rows[at])[:, None] * push / norm(push)
    length = 2 ** ((strikes - 1) // 2)
    for k in range(1, int(length.max())):
        on = (strikes % 2 == 1) & (length > k) & (search.evaluations[rows] < budget)
        if not bool(on.any()):
            break
        x[on] = search.apply(x[on], rows[on])
    return x


def solve(search: Search, x: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, forcing: torch.Tensor,
           limits: torch.Tensor, images: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GMRES for (I - J(x)) d = right, each row until it is solved to its `forcing` or has spent `limits`.

    `limits` counts tangents. With `images` F(x), the products with J are difference quotients.

    Returns:
        d (n, dim); what is left of the equation, relative to its right side, (n,); the least singular value that
        I - J has on the tangents tried, (n,).
    """
    n, dim = x.shape
    allowed = limits.cpu().numpy()
    most = min(int(allowed.max()), dim)
    size = norm(right)
    basis = x.new_zeros(n, most + 1, dim)
    basis[:, 0] = right / size.clamp(min=torch.finfo(x.dtype).tiny)[:, None]
    # the small triangular systems are solved on the host, in float64
    triangle = np.zeros((n, most, most))
    triangle[:, range(most), range(most)] = 1.0
    turned = np.zeros((n, most + 1))
    turned[:, 0] = 1.0
    cosines, sines = np.ones((n, most)), np.zeros((n, most))
    aim = forcing.cpu().double().numpy()
    left, spent = (size > 0).cpu().double().numpy(), np.zeros((n, 1), dtype=int)
    on = np.flatnonzero(left)
    width = search.eps ** 0.5 * search.scale(rows).clamp(min=search.eps)[:, None]  # of a difference quotient
    # all rows until one leaves: a slice is faster than their numbers
    own: slice | np.ndarray = slice(None)
    at: slice | torch.Tensor = slice(None)
    at_x, at_images, contexts, n_before = x, images, search.contexts[rows.cpu()], n
    for j in range(most):
        if not len(on):
            break
        if len(on) < n_before:
            own, at, n_before = on, torch.as_tensor(on, device=x.device), len(on)
            at_x, at_images = x[at], None if images is None else images[at]
            contexts = search.contexts[rows[at].cpu()]
        known = basis[at, :j + 1]
        v = known[:, j]
        if at_images is None:
            w = v - search.tangent(at_x, v, contexts)
        else:
            w = v - (search.image(at_x + width[at] * v, contexts) - at_images) / width[at]
        before = norm(w)
        column = torch.bmm(known, w[:, :, None])
        w = w - torch.bmm(column.mT, known)[:, 0]
        again = torch.bmm(known, w[:, :, None])  # Gram-Schmidt twice is orthogonal to rounding
        w = w - torch.bmm(again.mT, known)[:, 0]
        height = norm(w)
        ended = height <= 10 * search.eps * before  # the tangents span an invariant space
        basis[at, j + 1] = w / height.masked_fill(ended, 1.0)[:, None]
        whole = torch.cat(((column + again)[:, :, 0], height.masked_fill(ended, 0.0)[:, None]), dim=1)
        h = whole.cpu().double().numpy()
        stuck = h[:, j + 1] == 0
        for i in range(j):
            c, s = cosines[own, i], sines[own, i]
            h[:, i], h[:, i + 1] = c * h[:, i] + s * h[:, i + 1], c * h[:, i + 1] - s * h[:, i]
        length = np.hypot(h[:, j], h[:, j + 1])
        safe = np.where(length > 0, length, 1.0)
        c, s = np.where(length > 0, h[:, j] / safe, 1.0), h[:, j + 1] / safe
        cosines[own, j], sines[own, j] = c, s
        triangle[own, :j, j], triangle[own, j, j] = h[:, :j], length
        aside = turned[own, j]
        turned[own, j + 1], turned[own, j] = -s * aside, c * aside
        left[own], spent[own] = np.abs(turned[own, j + 1]), j + 1
        on = on[~stuck & np.isfinite(length) & (left[on] > aim[on]) & (allowed[on] > j + 1)]
    search.evaluations[rows] += torch.as_tensor((JVP if images is None else 1) * spent[:, 0], device=x.device)
    used = max(1, int(spent.max()))
    u, values, v_t = np.linalg.svd(np.where(np.isfinite(triangle[:, :used, :used]), triangle[:, :used, :used], 0.0))
    usable = values > 1e-14 * np.maximum(values[:, :1], 1.0)
    inverse = np.where(usable, 1 / np.where(usable, values, 1.0), 0.0)
    aims = np.where(np.arange(used) < spent, turned[:, :used], 0.0)
    y = np.einsum("nki,nk->ni", v_t, inverse * np.einsum("nik,ni->nk", u, aims))
    lost = ~usable.all(1)  # a direction along which I - J is 0: what lies there stays
    left = np.where(lost, 1.0, left)
    step = torch.bmm(torch.as_tensor(y, device=x.device).to(x.dtype)[:, None], basis[:, :used])[:, 0] * size[:, None]
    least = np.minimum(values[:, -1], 1.0)  # 1 is what I - J has at least on most directions that were not tried
    return step, torch.as_tensor(left).to(size), torch.as_tensor(least).to(size)
