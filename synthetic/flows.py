"""Flows as time-tau maps, integrated by torchdiffeq in steps of a fixed size, so that no orbit depends on another."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from synthetic.system import System

SPROTT = "Sprott, Chaos and Time-Series Analysis (2003), and sprott.physics.wisc.edu/chaos/comchaos.htm"
VAN_DER_POL = "own run: shooting with Runge-Kutta of order 8, relative tolerance 3e-14"


def flow(name: str, dim: int, field: Callable[[Any], Any], tau: float, start, *, n_substeps: int, transient: int = 0,
         reported=None, **exact) -> System:
    """The map that carries states on by the time tau.

    Args:
        name: its name.
        dim: dimensions.
        field: torch states (n, dim) -> their time derivatives (n, dim).
        tau: time of a step.
        start: (rng, n) -> states (n, dim).
        n_substeps: steps of the integrator (Dormand-Prince, order 8) within tau.
        transient: steps to leave out.
        reported: as in `System`.
        exact: as in `System`.
    """
    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import torch  # loads on first use
        from torchdiffeq import odeint

        times = torch.tensor([0.0, tau], dtype=torch.float64)
        size = tau / n_substeps
        with torch.no_grad():  # an adaptive step would depend on the other orbits of the batch
            return odeint(lambda _, x: field(x), torch.from_numpy(np.ascontiguousarray(states)), times, method="dopri8",
                          options={"first_step": size, "min_step": size, "max_step": size, "step_t": times[1:]},
                          rtol=1e-6, atol=1e-6)[-1].numpy()

    return System(name, dim, start, step, transient, exact=exact, reported=reported or {})


def _columns(x):
    return x.unbind(1)


def _stack(*columns):
    import torch

    return torch.stack(columns, dim=1)


def _box(low, high):
    return lambda rng, n: rng.uniform(low, high, size=(n, len(low)))


def _ring(inner: float, outer: float):
    """Starts in the plane, between two circles about the origin (which may repel, and let go only slowly)."""
    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        angle, radius = rng.uniform(0, 2 * np.pi, size=n), rng.uniform(inner, outer, size=n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return start


def hopf(name: str, mu: float, omega: float, tau: float, **exact) -> System:
    """The Hopf normal form z. = (mu + i omega - |z|^2) z: a cycle of radius sqrt(mu) and period 2 pi / omega if mu > 0.

    The multipliers of one turn are 1 and exp(-2 mu 2 pi / omega); the exponents per unit of time 0 and -2 mu. If
    mu < 0 the origin attracts, with multipliers exp((mu +- i omega) tau).
    """
    def field(state):
        x, y = _columns(state)
        grow = mu - x * x - y * y
        return _stack(grow * x - omega * y, grow * y + omega * x)

    radius = math.sqrt(abs(mu))
    return flow(name, 2, field, tau, _ring(0.4 * radius, 1.8 * radius), n_substeps=math.ceil(omega * tau / 0.4),
                **exact)


def hopf_cycle(mu: float, omega: float, period: int) -> System:
    """Above the onset, looked at `period` times a turn: a cycle of exactly so many steps."""
    turn = 2 * math.pi / omega
    tau = turn / period
    return hopf(f"hopf mu={mu:g}, {period} a turn", mu, omega, tau, regime="orbit", period=period,
                rate=math.exp(-2 * mu * tau), multipliers=(1.0, math.exp(-2 * mu * turn)),
                lyapunov=(0.0, -2 * mu * tau), lyapunov_sum=-2 * mu * tau)


def hopf_drifting(mu: float, omega: float, turns: float) -> System:
    """Above the onset, looked at every `turns` turns, irrational: the map never repeats."""
    tau = 2 * math.pi * turns / omega
    return hopf(f"hopf mu={mu:g}, {1 / turns:.3f} a turn", mu, omega, tau, transient=math.ceil(16 / (2 * mu * tau)),
                regime="quasi-periodic", rotation=(turns,), dimension=1.0, lyapunov=(0.0, -2 * mu * tau),
                lyapunov_sum=-2 * mu * tau)


def hopf_at_rest(mu: float, omega: float, tau: float) -> System:
    """Below the onset (mu < 0): a spiral into the origin."""
    rate = math.exp(mu * tau)
    multiplier = complex(rate * math.cos(omega * tau), rate * math.sin(omega * tau))
    return hopf(f"hopf mu={mu:g}, tau={tau:g}", mu, omega, tau,
                regime="fixed point" if rate**128 <= 0.01 else "converging", rate=rate, fixed_point=np.zeros(2),
                multipliers=(multiplier, multiplier.conjugate()), lyapunov=(mu * tau,) * 2, lyapunov_sum=2 * mu * tau)


def van_der_pol(mu: float, period: int, turn: float, log_multiplier: float, n_substeps: int) -> System:
    """The van der Pol oscillator x.. = mu (1 - x^2) x. - x, looked at `period` times a turn."""
    tau = turn / period

    def field(state):
        x, y = _columns(state)
        return _stack(y, mu * (1 - x * x) * y - x)

    reported = {"period": (period, f"{VAN_DER_POL}: a turn takes {turn!r}"),
                "multipliers": ((1.0, math.exp(log_multiplier)), VAN_DER_POL)}
    if log_multiplier > -30:  # less is left after a turn than rounding makes
        reported |= {"lyapunov": ((0.0, log_multiplier / period), VAN_DER_POL),
                     "rate": (math.exp(log_multiplier / period), VAN_DER_POL)}
    return flow(f"van der pol mu={mu:g}, {period} a turn", 2, field, tau, _ring(1, 3), n_substeps=n_substeps,
                regime="orbit", reported=reported)


def lorenz(tau: float) -> System:
    """The Lorenz flow at sigma 10, rho 28, beta 8/3; its divergence is -(sigma + 1 + beta) everywhere."""
    def field(state):
        x, y, z = _columns(state)
        return _stack(10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z)

    return flow(f"lorenz tau={tau:g}", 3, field, tau, _box((-5, -5, 15), (5, 5, 30)),
                n_substeps=math.ceil(tau / 0.05), transient=math.ceil(20 / tau), regime="chaotic",
                lyapunov_sum=-(10 + 1 + 8 / 3) * tau, reported={
                    "lyapunov": (tuple(tau * v for v in (0.9056, 0.0, -14.5723)), SPROTT),
                    "kaplan_yorke": (2.06215, SPROTT), "dimension": (2.068, f"{SPROTT}; +- .086")})


def roessler(tau: float) -> System:
    """The Roessler flow at a = b = .2, c = 5.7."""
    def field(state):
        x, y, z = _columns(state)
        return _stack(-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7))

    return flow(f"roessler tau={tau:g}", 3, field, tau, _box((-5, -5, 0), (5, 5, 0.1)),
                n_substeps=math.ceil(tau / 0.15), transient=math.ceil(100 / tau), regime="chaotic", reported={
                    "lyapunov": (tuple(tau * v for v in (0.0714, 0.0, -5.3943)), SPROTT),
                    "kaplan_yorke": (2.0132, SPROTT)})


def lorenz_96(dim: int, forcing: float, tau: float) -> System:
    """The ring of Lorenz (1996): x[i]. = (x[i+1] - x[i-2]) x[i-1] - x[i] + forcing; its divergence is -dim."""
    def field(x):
        return (x.roll(-1, 1) - x.roll(2, 1)) * x.roll(1, 1) - x + forcing

    return flow(f"lorenz 96 {dim}d", dim, field, tau, lambda rng, n: forcing + rng.normal(size=(n, dim)),
                n_substeps=math.ceil(tau / 0.1), transient=math.ceil(12 / tau), regime="chaotic",
                lyapunov_sum=-dim * tau, reported={
                    "lyapunov": ((1.68 * tau,), "literature: 1.67 to 1.69 per unit of time at 40d and forcing 8"),
                    "kaplan_yorke": (27.0, "literature, at 40d and forcing 8")})


SYSTEMS = (
    hopf_cycle(0.2, 1.0, 4), hopf_cycle(0.1, 1.0, 7), hopf_cycle(0.2, 2.0, 12),
    hopf_drifting(0.1, 1.0, (math.sqrt(5) - 1) / 2 / 4), hopf_drifting(0.2, 1.0, (math.sqrt(2) - 1) / 3),
    hopf_at_rest(-0.1, 1.0, 1.0), hopf_at_rest(-0.05, 1.0, 0.5),
    van_der_pol(0.1, 8, 6.287111272288721, -0.629103921026, 3),
    van_der_pol(1.0, 12, 6.663286859323122, -7.0589328088, 6),
    van_der_pol(5.0, 16, 11.6122306677195, -85.452018545, 20),
    lorenz(0.1), lorenz(0.5), roessler(0.5), lorenz_96(40, 8.0, 0.1),
)
