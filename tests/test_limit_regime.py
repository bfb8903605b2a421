"""`limit_regime`: every regime is found, nothing that contracts is called anything else, and it fails where it says."""

import collections

import numpy as np
import pytest
import torch

from dynloop import Outcome, Trajectories, limit_regime, limit_regime_blayney
from dynloop.analyzers.limit_regime import REGIMES
from dynloop.regime_model import regime_probabilities
from synthetic import bank

ALARMS = ("orbit", "quasi-periodic", "slider", "chaotic")
T = np.arange(128)


def recorded(latent, rng, *, dim=256, noise=0.0, offset=3.0, dtype="float32"):
    """Latent orbits (n, T, d) in a random frame of `dim` dimensions, at unit amplitude, away from the origin."""
    n, _, d = latent.shape
    late = latent[:, latent.shape[1] // 2:]
    size = np.sqrt(((late - late.mean(1, keepdims=True)) ** 2).sum(2).mean(1))
    size = np.maximum(size, np.linalg.norm(latent[:, 0] - latent[:, -1], axis=1) / 2)
    frame = np.linalg.qr(rng.normal(size=(dim, d)))[0].T
    states = (latent / np.maximum(size, 1e-300)[:, None, None]) @ frame
    shift = rng.normal(size=(n, 1, dim))
    states += offset * shift / np.linalg.norm(shift, axis=2, keepdims=True)
    states += noise * rng.normal(size=states.shape) / np.sqrt(dim)
    return Trajectories(torch.from_numpy(states).to(getattr(torch, dtype)))


def turning(decay, turns, rng):
    """Spirals (n, T, 2): radius `decay` (T,) or (n, T), `turns` (n,) a step."""
    phase = 2 * np.pi * (rng.random((len(turns), 1)) + turns[:, None] * np.arange(decay.shape[-1]))
    return np.stack([decay * np.cos(phase), decay * np.sin(phase)], axis=2)


def named(orbits, **settings):
    return collections.Counter(limit_regime(orbits, **settings).values.tolist())


def alarms(orbits):
    return int(np.isin(limit_regime(orbits).values, ALARMS).sum())


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("family", bank.FAMILIES)
def test_every_family_of_the_bank_is_recognised(family, noise):
    truth, _ = bank.FAMILIES[family]
    said = sum((named(bank.record(family, 40, 128, seed, noise=noise)[0]) for seed in range(7001, 7005)),
               collections.Counter())
    assert set(said) <= set(REGIMES)
    assert said[truth] + said["undetermined"] >= 156  # of 160
    assert said[truth] >= 144


@pytest.mark.parametrize(("n_steps", "least"), [(64, 0.9), (256, 0.93)])
@pytest.mark.parametrize("family", ["damped_spiral", "slow_mode", "random_cycle", "rotation", "drift", "logistic_chaos",
                                    "expansion"])
def test_shorter_and_longer_records_do_too(family, n_steps, least):
    truth, _ = bank.FAMILIES[family]
    said = named(bank.record(family, 100, n_steps, 7001, noise=0.02)[0])
    assert said[truth] + said["undetermined"] >= 96
    assert said[truth] >= 100 * least


@pytest.mark.parametrize("dim", [32, 1024])
@pytest.mark.parametrize("family", ["dense_contraction", "random_cycle", "torus", "drift", "henon"])
def test_so_do_few_and_many_dimensions(family, dim):
    truth, _ = bank.FAMILIES[family]
    said = named(bank.record(family, 60, 128, 7001, noise=0.05, dim=dim)[0])
    assert said[truth] + said["undetermined"] >= 57
    assert said[truth] >= 50


def contractions(n, rng, n_steps=128):
    """Trajectories of n orbits that contract, all of one kind drawn at random; at least 70 % of the way is gone.

    Not the bank's: descent with momentum, networks whose weights shrink every distance, chains with large coupling,
    damped oscillators in a ring, rounding inside the loop, last bits that flicker.
    """
    kind = rng.choice(["momentum", "network", "chain", "ring", "rounded", "flicker", "spiral", "resolvent"])
    dtype = str(rng.choice(["float32", "bfloat16"]))
    noise = float(rng.choice([0, 0, 0.01, 0.1]))
    t = np.arange(n_steps)
    left = rng.uniform(0.0, 0.3, n) ** rng.choice([1, 4])  # of the way, at the end
    rho = np.maximum(left, 1e-12) ** (1 / n_steps)
    if kind == "momentum":  # on a quadratic: x' = x - a H x + b (x - x_before)
        h, x = rng.uniform(0.002, 1, (n, 12)), rng.normal(size=(n, 12))
        h[:, 0] = (1 - rho) * 3
        momentum, before, states = rho[:, None] ** 2, x, []
        for _ in t:
            states.append(x)
            x, before = x - np.minimum(h, 1) * x + momentum * (x - before), x
        return recorded(np.stack(states, 1), rng, noise=noise, dtype=dtype)
    if kind in ("network", "rounded"):
        dim = int(rng.choice([8, 64]))
        weights = rng.normal(size=(n, dim, dim))
        weights *= (np.minimum(rho, 0.97) / np.linalg.norm(weights, 2, axis=(1, 2)))[:, None, None]
        wide = torch.bfloat16 if kind == "rounded" else torch.float64
        w = torch.from_numpy(weights).to(wide)
        bias, x = (torch.from_numpy(rng.normal(size=(n, dim, 1))).to(wide) for _ in range(2))
        states = []
        for _ in t:
            states.append(x[..., 0])
            x = torch.tanh(w @ x + bias)
        return Trajectories(torch.stack(states, 1).to(torch.bfloat16 if kind == "rounded" else getattr(torch, dtype)))
    if kind == "chain":  # a Jordan block, lopsided
        k = int(rng.integers(3, 9))
        rate = np.minimum(rho, 0.02 ** (1 / n_steps * k))
        couple, z, states = rng.uniform(0, 0.5, (n, 1)), rng.normal(size=(n, k)), []
        for _ in t:
            states.append(z)
            z = rate[:, None] * z + couple * np.concatenate([z[:, 1:], np.zeros((n, 1))], axis=1)
        return recorded(np.stack(states, 1), rng, noise=noise, dtype=dtype)
    if kind == "ring":  # eigenvalues of a circulant matrix, the largest of modulus rho
        k, z, states = 9, rng.normal(size=(n, 9)), []
        kernel = np.fft.fft(rng.normal(size=(n, k)), axis=1)
        kernel *= rho[:, None] / np.abs(kernel).max(1, keepdims=True)
        for _ in t:
            states.append(z)
            z = np.fft.ifft(kernel * np.fft.fft(z, axis=1), axis=1).real
        return recorded(np.stack(states, 1), rng, noise=noise, dtype=dtype)
    if kind == "resolvent":  # implicit steps (I + A)^-1, A with a positive symmetric part
        a = rng.normal(size=(n, 10, 10))
        a = (a - a.transpose(0, 2, 1)) * rng.uniform(0, 2, (n, 1, 1)) + np.eye(10) * (1 / rho - 1)[:, None, None]
        step, x, states = np.linalg.inv(np.eye(10) + a), rng.normal(size=(n, 10, 1)), []
        for _ in t:
            states.append(x[..., 0])
            x = step @ x
        return recorded(np.stack(states, 1), rng, noise=noise, dtype=dtype)
    if kind == "flicker":
        period, bits = int(rng.choice([2, 3, 5, 7])), int(rng.choice([1, 16, 128]))
        x = rng.normal(size=(n, 1, 128)) + 0.7 ** t[:, None] * rng.normal(size=(n, 1, 128))
        raw = torch.from_numpy(x).bfloat16().view(torch.int16).clone()
        for j in range(1, period):
            raw[:, j::period, torch.from_numpy(rng.permutation(128)[:bits])] += 1
        return Trajectories(raw.view(torch.bfloat16))
    return recorded(turning(rho[:, None] ** t, rng.uniform(0.01, 0.5, n), rng), rng, noise=noise, dtype=dtype)


def test_thousands_of_contractions_raise_no_alarm():
    rng = np.random.default_rng(7001)
    said = collections.Counter()
    for _ in range(50):
        said += named(contractions(50, rng))
    assert said.total() == 2500
    assert not {kind: n for kind, n in said.items() if kind in (*ALARMS, "diverging")}
    assert said["fixed point"] + said["converging"] >= 2300


@pytest.mark.slow
def test_of_a_hundred_thousand_contractions_at_most_three_in_a_hundred_thousand_raise_an_alarm():
    from scipy.stats import beta

    rng, found, n = np.random.default_rng(7002), 0, 0
    while n < 100_000:
        found, n = found + alarms(contractions(250, rng)), n + 250
    upper = beta.ppf(0.95, found + 1, n - found)  # Clopper-Pearson, one-sided
    assert upper <= 3.1e-5, f"{found} alarms among {n:,}: at most {upper:.2g} at 95 %"


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("left", [0.6, 0.75, 0.9])
def test_a_spiral_that_shrinks_slowly_but_surely_is_no_orbit(left, noise, rng):
    orbits = recorded(turning(left ** (T / 128), rng.uniform(0.02, 0.5, 100), rng), rng, noise=noise)
    assert alarms(orbits) <= 5


@pytest.mark.parametrize("transient", [3, 10, 100, 1000])
def test_a_small_orbit_is_found_after_a_long_way(transient, rng):
    points = rng.normal(size=(100, 3, 8))
    way = transient * rng.normal(size=(100, 1, 8)) * 0.6 ** T[:, None]
    said = named(recorded(points[:, T % 3] + way, rng))
    assert said["fixed point"] == 0
    assert said["orbit"] >= 80


def test_a_spiral_that_noise_keeps_alive_is_not_chaos(rng):
    z, states = np.zeros(200, complex), []
    for _ in range(428):
        z = 0.98 * np.exp(0.7j) * z + rng.normal(size=200) + 1j * rng.normal(size=200)
        states.append(z)
    states = np.stack(states[300:], 1)
    assert alarms(Trajectories(np.stack([states.real, states.imag], 2))) <= 20


NULLS = {"noise": lambda rng, d: rng.normal(size=(200, 128, d)),
         "walk": lambda rng, d: rng.normal(size=(200, 128, d)).cumsum(1),
         "walk far from the origin": lambda rng, d: 1000 + rng.normal(size=(200, 128, d)).cumsum(1),
         "shuffled cycle": lambda rng, d: rng.permuted(np.repeat(rng.normal(size=(200, 1, d)), 128, 1) *
                                                       (1 + T[:, None] % 5), axis=1)}


@pytest.mark.parametrize("dim", [1, 2, 16, 200])
@pytest.mark.parametrize("null", NULLS)
def test_movement_without_structure_is_undetermined(null, dim, rng):
    said = named(Trajectories(NULLS[null](rng, dim)))
    assert said["undetermined"] >= 194
    assert said["orbit"] == 0


def around_one(radius, period):
    """A circle about a centre of norm 1, as Algorithm 1 sees it."""
    angle = 2 * np.pi * T / period
    return np.stack([np.ones(128), radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def off_centre(distance):
    return np.stack([np.ones(128), distance], axis=1)


def test_what_the_published_algorithm_calls_wrongly_is_not():
    traps = {("small orbit", "fixed point", "orbit"): around_one(0.05, 7),
             ("tiny orbit", "fixed point", "orbit"): around_one(1e-3, 7),
             **{(f"rate {rate}", "slider", right): off_centre(2 * rate**T) for rate, right in
                ((0.9, "fixed point"), (0.95, "fixed point"), (0.99, "converging"))},
             ("slow drift", "fixed point", "slider"): off_centre(0.002 * T),
             ("drift", "slider", "slider"): off_centre(0.005 * T),
             ("spiral", "fixed point", "fixed point"): around_one(0.83**T, 6)}
    states = Trajectories(np.stack([np.pad(x, ((0, 0), (0, 3 - x.shape[1]))) for x in traps.values()]))
    assert limit_regime_blayney(states).values.tolist() == [wrong for _, wrong, _ in traps]
    assert limit_regime(states).values.tolist() == [right for *_, right in traps]


def test_nor_noise_walks_and_chaos_that_it_calls_orbits_and_sliders(rng):
    noise = np.stack([np.ones((200, 128)), 0.7 * rng.normal(size=(200, 128))], 2)
    walks = rng.normal(size=(200, 128, 200)).cumsum(1)
    x, chaos = rng.random(200), []
    for _ in range(128):
        x = 4 * x * (1 - x)
        chaos.append(2 * x - 1)
    chaos = np.stack([np.ones((200, 128)), np.stack(chaos, 1)], 2)
    theirs = [collections.Counter(limit_regime_blayney(Trajectories(s)).values.tolist()) for s in (noise, walks, chaos)]
    assert theirs[0]["orbit"] >= 190
    assert theirs[1]["slider"] >= 190
    assert theirs[2]["orbit"] >= 190
    assert [alarms(Trajectories(s)) for s in (noise, walks)] == [0, 0]
    assert named(Trajectories(chaos))["chaotic"] >= 190


def test_an_orbit_has_its_period_and_nothing_else_has_one(rng):
    periods = rng.integers(2, 40, 60)
    points = rng.normal(size=(60, 40, 16))
    cycles = points[np.arange(60)[:, None], T % periods[:, None]]
    m = limit_regime(Trajectories(np.concatenate([cycles, rng.normal(size=(20, 128, 16))])))
    assert (m.values[:60] == "orbit").all()
    np.testing.assert_array_equal(m["period"][:60], periods)
    assert np.isnan(m["period"][60:]).all()
    assert m.units["period"] == "recurrences"


def test_confidence_is_that_of_the_name_and_a_higher_demand_names_fewer():
    orbits = bank.record("slow_spiral", 200, 128, 7001, noise=0.2, dim=4)[0]
    lax, usual, strict = (limit_regime(orbits, least_confidence=c) for c in (0.3, 0.9, 0.999))
    share = [(m.values != "undetermined").mean() for m in (lax, usual, strict)]
    assert share[0] > share[1] > share[2]
    for m, least in ((lax, 0.3), (usual, 0.9), (strict, 0.999)):
        assert (m["confidence"][m.values != "undetermined"] >= least).all()
        assert ((m["confidence"] > 0) & (m["confidence"] <= 1)).all()
        assert m.settings["least_confidence"] == least
    np.testing.assert_array_equal(lax["confidence"], strict["confidence"])


def test_what_may_be_a_fixed_point_or_converging_is_undetermined():
    orbits = bank.record("slow_mode", 400, 128, 7001, noise=0.2)[0]
    both = regime_probabilities(orbits)[:, [REGIMES.index("fixed point"), REGIMES.index("converging")]]
    unsure = (both.sum(1) > 0.99) & (both.max(1) < 0.95)
    assert 3 < unsure.sum() < 100
    assert (limit_regime(orbits).values[unsure] == "undetermined").all()


@pytest.mark.parametrize("period", [1, 2, 5])
def test_flicker_far_below_what_the_start_could_resolve_is_no_orbit(period, rng):
    """A limit at exactly 0, as a recording that is centred on it has: its dust has no spacing to be measured by."""
    decay = rng.normal(size=(20, 1, 64)) * 0.5 ** T[:, None]
    dust = 1e-18 * rng.normal(size=(20, period, 64))[:, T % period]
    regime = limit_regime(Trajectories((decay + dust).astype("float32"))).values
    assert set(regime) <= {"fixed point", "converging", "undetermined"}


@pytest.mark.parametrize("wrong", [0, 1, 1.5, True, None, "0.9"])
def test_a_confidence_that_is_no_probability_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="least_confidence"):
        limit_regime(Trajectories(np.ones((1, 20, 2))), least_confidence=wrong)


def test_the_outcomes(rng):
    states = rng.normal(size=(7, 40, 3))
    states[1] *= np.where(np.arange(40) < 30, 1, np.nan)[:, None]
    states[2] = np.exp(np.arange(40))[:, None]
    states[2, 30:] = np.inf
    states[3, 0] = np.nan
    states[6] = np.sin(np.arange(40))[:, None]
    m = limit_regime(Trajectories(states, lengths=[40, 40, 40, 40, 15, 16, 40]))
    assert m.outcomes.tolist() == [Outcome.FOUND, *[Outcome.NOT_FINITE] * 3, Outcome.TOO_SHORT, Outcome.FOUND,
                                   Outcome.FOUND]
    assert m.values.tolist()[1:5] == ["", "diverging", "", ""]
    assert np.isnan(m["confidence"][1:5]).all()
    assert np.isfinite(m["confidence"][[0, 5, 6]]).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 3e38])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_constant_record_is_a_fixed_point_whatever_the_constant(value, dtype):
    m = limit_regime(Trajectories(torch.full((2, 64, 8), value, dtype=getattr(torch, dtype))))
    assert m.values.tolist() == ["fixed point"] * 2
    assert m["confidence"].tolist() == [1.0] * 2


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e140])
def test_the_scale_does_not_matter(scale, rng):
    states = np.stack([np.stack([np.cos(T), np.sin(T), T / 500], 1), around_one(0.9**T, 6), around_one(1.0, 7),
                       off_centre(0.1 * T) @ [[1, 0, 0], [0, 1, 0]]])
    states += 1e-3 * rng.normal(size=states.shape)
    scaled, usual = limit_regime(Trajectories(scale * states)), limit_regime(Trajectories(states))
    assert scaled.values.tolist() == usual.values.tolist()


def test_float32_states_whose_squares_overflow_are_judged_like_others(rng):
    orbits = bank.record("random_cycle", 20, 128, 7001, noise=0.02)[0]
    assert limit_regime(Trajectories(orbits.states * 1e30)).values.tolist() == ["orbit"] * 20


def test_exact_cycles_are_orbits_in_any_frame(rng):
    """Noise-free: what is left when the lines are out is rounding alone."""
    for p in (2, 3, 4, 8, 12, 16):
        states = rng.normal(size=(10, p, 6))[:, T % p]
        turned = states @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 1
        for own in (states, turned, turned.astype("float32")):
            m = limit_regime(Trajectories(own))
            assert m.values.tolist() == ["orbit"] * 10
            assert m["period"].tolist() == [p] * 10


def test_of_a_long_record_the_end_counts(rng):
    rest = np.concatenate([rng.normal(size=(5, 300, 8)), np.repeat(rng.normal(size=(5, 1, 8)), 260, 1)], 1)
    assert limit_regime(Trajectories(rest)).values.tolist() == ["fixed point"] * 5


def test_and_what_went_before_the_last_256_steps_does_not(rng):
    early, late = 5 * rng.normal(size=(5, 300, 8)), rng.normal(size=(5, 4, 8))[:, np.arange(260) % 4]
    assert limit_regime(Trajectories(np.concatenate([early, late], 1))).values.tolist() == ["orbit"] * 5


def test_the_resolution_of_the_computation_decides_what_is_at_rest(rng):
    flicker = 1 + 2.0**-9 * (-1.0) ** T[:, None] * np.ones((1, 16))
    wide = Trajectories(flicker[None])
    assert limit_regime(wide).values.tolist() == ["orbit"]
    assert limit_regime(wide.replace(resolution=2.0**-7)).values.tolist() == ["fixed point"]
