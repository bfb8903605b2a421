"""Every synthetic system: its orbits keep the contract, and each of its answers is found again without being told."""

import ast
import functools
import itertools
import math
import pathlib

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial

import dynloop
import synthetic
from synthetic import cat_map, cycles, finite_maps, linear, nulls, rotations, sliders
from synthetic.frames import frame
from synthetic.system import KNOWN, REGIMES, System

NAMES = list(synthetic.systems())
FLOWS = {s.name for s in synthetic.families()["flows"]}  # 1 ms a step of the integrator: they are watched for less long
SLOW = FLOWS - {"hopf mu=0.2, 12 a turn"}
EXACT, REPORTED = ([pytest.param(name, what, marks=pytest.mark.slow if name in SLOW else ())
                    for name in NAMES for what in getattr(synthetic.system(name), known)]
                   for known in ("exact", "reported"))


@pytest.fixture(params=NAMES)
def system(request):
    return synthetic.system(request.param)


class Silent:
    """A generator that nobody may use."""

    def __getattr__(self, name):
        raise AssertionError(f"a deterministic rule asked its rng for {name}")


# ---- independent answers: from `start` and `step` alone ---------------------------------------------------------

def push(system, states, n_steps):
    """States after so many steps."""
    rng = np.random.default_rng(1)
    for _ in range(n_steps):
        states = system.step(states, rng)
    return states


def record(system, states, n_steps):
    """States (n, n_steps, dim), the first of them as given."""
    path = [states]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(n_steps - 1):
            path.append(push(system, path[-1], 1))
    return np.stack(path, axis=1)


def known(system):
    """All answers, exact ones before reported ones."""
    return {**{what: value for what, (value, _) in system.reported.items()}, **system.exact}


def patience(system):
    """Steps after which nothing is left of the approach. A claimed rate decides how long to look, not what is seen."""
    soon = system.name in FLOWS or system.exact["regime"] in ("quasi-periodic", "chaotic", "slider")
    rate = known(system).get("rate", 0.9 if soon else 0.98)
    return 4000 if rate > 0.993 else 60 + math.ceil(math.log(1e-13) / math.log(max(rate, 0.05)))


@functools.cache
def _settled(name, n):
    system = synthetic.system(name)
    return push(system, system.orbits(n, 1, rng=11)[:, 0], 0 if system.transient else patience(system))


def settled(system, n):
    """States (n, dim) on the limit set."""
    return _settled(system.name, max(n, 16))[:n]


def derivative(system, states, directions):
    """Central differences of a step: states (n, dim), directions (n, dim, k) -> (n, dim, k)."""
    n, dim, k = directions.shape
    h = 1e-5 * max(1.0, float(np.abs(states).max()))
    ahead, behind = (push(system, (states[:, None] + sign * h * directions.transpose(0, 2, 1)).reshape(n * k, dim), 1)
                     for sign in (1, -1))
    return ((ahead - behind) / (2 * h)).reshape(n, k, dim).transpose(0, 2, 1)


def jacobian(system, states):
    return derivative(system, states, np.broadcast_to(np.eye(system.dim), (len(states), system.dim, system.dim)))


def eigenvalues_of_limit(system, period):
    """Eigenvalues of the product of Jacobians around the limit, largest modulus first."""
    state = np.asarray(system.exact.get("fixed_point", settled(system, 1)[0]))[None]
    product = np.eye(system.dim)
    for _ in range(period):
        product = jacobian(system, state)[0] @ product
        state = push(system, state, 1)
    values = np.linalg.eigvals(product)
    return values[np.argsort(-np.abs(values))]


def tangent_exponents(system, k):
    """The k largest exponents by QR along 16 orbits, after the frame has turned into place."""
    n_orbits, n_steps = (8, 200) if system.name in FLOWS else (16, 1500) if k < 8 else (4, 400)
    states = settled(system, n_orbits)
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(n_orbits, system.dim, k)))[0]
    total = np.zeros((n_orbits, k))
    for t in range(n_steps):
        basis, scale = np.linalg.qr(derivative(system, states, basis))
        if t >= n_steps // 4:
            total += np.log(np.abs(np.diagonal(scale, axis1=1, axis2=2)) + 1e-300)
        states = push(system, states, 1)
    return np.sort(total.mean(0) / (n_steps - n_steps // 4))[::-1]


def exponents(system, k):
    """Of a limit that repeats: from its eigenvalues; else along orbits."""
    if system.exact["regime"] in ("fixed point", "converging", "orbit") or "spectral_radius" in system.exact:
        period = known(system).get("period", 1)
        return np.log(np.abs(eigenvalues_of_limit(system, period)[:k]) + 1e-300) / period
    return tangent_exponents(system, k)


def spread(states):
    """Size of a set of states: the largest standard deviation of a coordinate."""
    return float(states.reshape(-1, states.shape[-1]).std(0).max())


# ---- one check for each name in KNOWN: check_NAME(system, claimed, loose) -------------------------------------------

def check_regime(system, claimed, loose):
    if claimed == "undetermined":
        assert system.noisy
        return
    assert not system.noisy
    if claimed == "orbit":
        late = record(system, settled(system, 12), 301)
        returns = [np.abs(late[:, lag:] - late[:, :-lag]).max() for lag in range(1, 150)]
        assert returns[0] > 1e-3 * spread(late)
        assert min(returns[1:]) < 1e-6 * spread(late)
        return
    half = 150 if system.name in FLOWS else 500
    path = record(system, system.orbits(12, 1, rng=5)[:, 0], 2 * half + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        reached = np.linalg.norm(path - path[:, :1], axis=2)
        size = np.linalg.norm(np.diff(path, axis=1), axis=2)
    late = path[:, half:]
    if claimed in ("fixed point", "converging"):
        away = np.linalg.norm(path - system.exact.get("fixed_point", path[:, -1:]), axis=2)
        left = np.median(away / away[:, :1], axis=0)
        assert (left[127] <= 0.01) == (claimed == "fixed point")
        assert left[half] <= 0.35
    elif claimed == "slider":
        assert (reached[:, 2 * half] > 1.7 * reached[:, half]).all()
        assert (size[:, half] < 1.01 * size[:, 50]).all()
    elif claimed == "diverging":
        assert (~np.isfinite(size[:, half]) | (size[:, half] > 100 * size[:, 50])).all()
    else:
        assert np.isfinite(path).all()
        assert np.median(reached[:, half:].max(1) / reached[:, :half].max(1)) < 1.5
        close = 1e-9 * np.random.default_rng(2).normal(size=path[:, 0].shape)
        apart = np.linalg.norm(record(system, path[:, 0] + close, 2 * half + 1) - path, axis=2)
        returns = np.linalg.norm(late[:, 1:] - late[:, :1], axis=2)
        assert returns.min() > 1e-7 * spread(path)
        growth = apart.max(1) / apart[:, 0]
        assert np.median(growth) > 1e4 if claimed == "chaotic" else growth.max() < 1e4


def check_period(system, claimed, loose):
    assert claimed == int(claimed) >= 1
    path = record(system, settled(system, 12), 3 * claimed + 1)
    scale = spread(path) if claimed > 1 else 1.0
    assert np.abs(path[:, claimed:] - path[:, :-claimed]).max() < (1e-6 if loose else 1e-9) * scale
    for lag in range(1, claimed):
        assert np.abs(path[:, lag:] - path[:, :-lag]).max(axis=(1, 2)).min() > 1e-4 * scale, f"already after {lag}"


def check_rate(system, claimed, loose):
    period = known(system).get("period", 1)
    n_steps = patience(system)
    path = record(system, system.start(np.random.default_rng(7), 40), n_steps + 2 * period)
    if "fixed_point" in system.exact:
        away = np.linalg.norm(path - system.exact["fixed_point"], axis=2)
    else:  # from the state of the same phase at the end
        ends = len(path[0]) - period + (np.arange(len(path[0])) - len(path[0])) % period
        away = np.linalg.norm(path - path[:, ends], axis=2)
    depth = np.log(away + 1e-30).mean(0) - np.log(away[:, 0]).mean()  # phases of complex pairs average out
    floor = 1e-7 if system.name in FLOWS else 1e-11  # the integrator's phase is off by 1e-10 a turn
    good = np.flatnonzero((depth < math.log(1e-4)) & (depth > math.log(floor)))
    first, last = (good[0], good[-1]) if len(good) else (len(depth) // 2, len(depth) - 1 - period)
    if claimed == 0:
        assert first - np.flatnonzero(depth < math.log(1e-2))[0] <= 3 * period
        assert depth[first + 3 * period] < math.log(1e-12)
        return
    first = min(first, last - period)
    last = first + (last - first) // period * period
    found = (depth[last] - depth[first]) / (last - first)
    assert found == pytest.approx(math.log(claimed), rel=0.1 if loose else 0.05, abs=1e-3)


def check_lyapunov(system, claimed, loose):
    claimed = np.array(claimed)
    assert (np.diff(claimed[np.isfinite(claimed)]) <= 1e-12).all(), "largest first"
    found = exponents(system, len(claimed))
    gone = np.isneginf(claimed)
    assert (found[gone] * system.exact.get("period", 1) < -12).all()
    np.testing.assert_allclose(found[~gone], claimed[~gone], rtol=0.05 if loose else 0.02, atol=0.03 if loose else 0.01)


def check_lyapunov_sum(system, claimed, loose):
    states, total = settled(system, 8), []
    for _ in range(40 if system.name in FLOWS else 100 if system.dim > 4 else 1000):
        total.append(np.linalg.slogdet(jacobian(system, states))[1])
        states = push(system, states, 1)
    assert np.mean(total) == pytest.approx(claimed, rel=0.01, abs=0.02)


def check_multipliers(system, claimed, loose):
    claimed = np.array(claimed, dtype=complex)
    assert (np.diff(np.abs(claimed)) <= 1e-12).all(), "largest modulus first"
    found = eigenvalues_of_limit(system, known(system).get("period", 1))
    apart = np.abs(claimed[:, None] - found)
    mine, theirs = scipy.optimize.linear_sum_assignment(apart)
    assert apart[mine, theirs].max() < 1e-5
    assert (np.abs(np.delete(found, theirs)) <= np.abs(claimed).min() + 1e-5).all()


def check_fixed_point(system, claimed, loose):
    assert np.shape(claimed) == (system.dim,)
    assert np.abs(push(system, claimed[None], 1) - claimed).max() < 1e-12 * max(1, np.abs(claimed).max())
    first, last = system.orbits(16, 1, rng=11)[:, 0], settled(system, 16)
    assert np.median(np.linalg.norm(last - claimed, axis=1) / np.linalg.norm(first - claimed, axis=1)) < 0.1


def check_cycle(system, claimed, loose):
    assert np.shape(claimed) == (system.exact["period"], system.dim)
    assert np.abs(push(system, claimed, 1) - np.roll(claimed, -1, axis=0)).max() < 1e-12 * max(1, np.abs(claimed).max())
    away = np.linalg.norm(settled(system, 12)[:, None] - claimed, axis=2).min(1)
    assert away.max() < 1e-9 * spread(claimed)


def check_rotation(system, claimed, loose):
    """Each is a line of the spectrum, and sums of whole multiples of them are all of it."""
    claimed = np.atleast_1d(claimed)
    n_steps, order = 300 if system.name in FLOWS else 1500, {1: 15, 2: 8, 3: 5}[len(claimed)]
    signal = record(system, settled(system, 1), n_steps)[0] @ np.random.default_rng(4).normal(size=system.dim)
    signal -= signal.mean()
    t = np.arange(n_steps)
    window = np.sin(np.pi * (t + 0.5) / n_steps) ** 4
    for turns in claimed:
        near = turns + np.linspace(-2, 2, 2001) / n_steps
        line = np.abs((window * signal) @ np.exp(-2j * np.pi * t[:, None] * near)) / window.sum()
        assert abs(near[line.argmax()] - turns) < 1e-5
        assert line.max() > 0.02 * signal.std()
    multiples = [m for m in itertools.product(range(-order, order + 1), repeat=len(claimed))
                 if sum(map(abs, m)) <= order and m > (0,) * len(claimed)]
    angle = 2 * np.pi * t[:, None] * (np.array(multiples) @ claimed)
    waves = np.concatenate([np.cos(angle), np.sin(angle), np.ones((n_steps, 1))], axis=1)
    left = signal - waves @ np.linalg.lstsq(waves, signal)[0]
    assert left.std() < 0.05 * signal.std()


def check_dimension(system, claimed, loose):
    states = record(system, settled(system, 500), 5).reshape(-1, system.dim)
    distances = np.sort(scipy.spatial.distance.pdist(states))
    share = np.array([2e-4, 2e-3])
    radius = distances[(share * len(distances)).astype(int)]
    assert np.diff(np.log(share))[0] / np.diff(np.log(radius))[0] == pytest.approx(claimed, rel=0.12)


def check_kaplan_yorke(system, claimed, loose):
    found = exponents(system, system.dim)
    total, whole = 0.0, 0
    while whole < len(found) and total + found[whole] >= -1e-3:
        total += found[whole]
        whole += 1
    dimension = whole + (max(total, 0) / -found[whole] if whole < len(found) else 0.0)
    assert dimension == pytest.approx(claimed, rel=0.05 if loose else 0.02)


def check_tail(system, claimed, loose):
    period = system.exact["period"]
    path = system.orbits(12, claimed + 2 * period + 1, rng=8)
    again = (path[:, period:] == path[:, :-period]).all(2)
    assert (again.argmax(1) == claimed).all()
    assert again[:, claimed:].all()


def check_speed(system, claimed, loose):
    steps = np.linalg.norm(np.diff(record(system, settled(system, 12), 50), axis=1), axis=2)
    np.testing.assert_allclose(steps, claimed, rtol=1e-9)


def check_spectral_radius(system, claimed, loose):
    values = np.linalg.eigvals(jacobian(system, system.orbits(3, 1)[:, 0]))
    np.testing.assert_allclose(np.abs(values).max(1), claimed, rtol=1e-6)


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}


def test_there_is_a_check_for_every_known_answer():
    assert sorted(CHECKS) == sorted(KNOWN)


@pytest.mark.parametrize(("name", "what"), EXACT)
def test_an_exact_answer_is_found_again(name, what):
    system = synthetic.system(name)
    CHECKS[what](system, system.exact[what], False)


@pytest.mark.parametrize(("name", "what"), REPORTED)
def test_a_reported_answer_is_about_right(name, what):
    system = synthetic.system(name)
    CHECKS[what](system, system.reported[what][0], True)


@pytest.mark.parametrize(("name", "what", "wrong"), [
    ("logistic r=2.8", "regime", "orbit"), ("logistic r=3.2", "regime", "fixed point"),
    ("linear 64d slow", "regime", "fixed point"), ("linear 8d real", "regime", "converging"),
    ("rotation golden", "regime", "orbit"), ("rotation golden", "regime", "chaotic"),
    ("rotation 2/5", "regime", "quasi-periodic"), ("logistic r=4", "regime", "quasi-periodic"),
    ("drift 2d", "regime", "diverging"), ("linear 2d expanding", "regime", "slider"),
    ("drift 2d", "regime", "quasi-periodic"), ("white noise 2d", "regime", "chaotic"),
    ("logistic r=4", "regime", "undetermined"), ("logistic r=3.5", "period", 2), ("logistic r=3.5", "period", 8),
    ("linear 64d crowded", "rate", 0.89), ("logistic r=3", "rate", 0.99), ("logistic r=2.5", "rate", 0.0),
    ("logistic r=4", "lyapunov", (0.73,)), ("rotation golden", "lyapunov", (0.0, -0.02)),
    ("linear 2d .6 .3", "lyapunov", (math.log(0.6), -math.inf)), ("logistic r=3.2", "lyapunov", (math.log(0.16),)),
    ("henon a=1.4 b=0.3", "lyapunov_sum", math.log(0.31)), ("henon a=0.8 b=0.3", "multipliers", (-0.43, -0.2)),
    ("linear 8d real", "multipliers", (0.72,)), ("linear 8d real", "fixed_point", np.zeros(8)),
    ("cycle 5 of points in 3d", "cycle", synthetic.system("cycle 5 of points in 3d").exact["cycle"][::-1]),
    ("moebius golden", "rotation", (2 * rotations.GOLDEN,)), ("moebius golden", "rotation", rotations.SILVER),
    ("rotation on a 2-torus", "rotation", (rotations.GOLDEN,)), ("rotation on a 2-torus", "dimension", 1.5),
    ("kaplan-yorke a=0.2", "kaplan_yorke", 1.5), ("finite map, tail 5, cycle 3, 16d", "tail", 4),
    ("finite map, tail 5, cycle 3, 16d", "tail", 6), ("drift 2d", "speed", 0.0501),
    ("linear 2d spiral", "spectral_radius", 0.9 * math.cos(0.7)),
])
def test_a_wrong_answer_is_noticed(name, what, wrong):
    with pytest.raises(AssertionError):
        CHECKS[what](synthetic.system(name), wrong, False)


# ---- the contract ---------------------------------------------------------------------------------------------------

def test_every_regime_has_a_system():
    assert {synthetic.system(name).exact["regime"] for name in NAMES} == set(REGIMES)


@functools.cache
def recorded(name):
    return synthetic.system(name).orbits(50, 40)


def test_orbits_have_their_shape_and_are_finite_unless_they_diverge(system):
    states = recorded(system.name)
    assert states.shape == (50, 40, system.dim)
    assert states.dtype == np.float64
    assert np.isfinite(states).all() or system.exact["regime"] == "diverging"


def test_orbits_differ(system):
    first = np.unique(recorded(system.name)[:, 0], axis=0)
    assert len(first) >= (3 if "tail" in system.exact else 50)  # of a finite map there are only so many


def test_the_same_seed_gives_the_same_orbits_however_long_and_another_seed_gives_others(system):
    states = recorded(system.name)
    np.testing.assert_array_equal(system.orbits(50, 17, rng=np.random.default_rng(0)), states[:, :17])
    assert not np.array_equal(system.orbits(50, 1, rng=1), states[:, :1])


def test_a_rule_uses_its_rng_if_and_only_if_it_is_noisy(system):
    states = recorded(system.name)[:, 0]
    if system.noisy:
        assert not np.array_equal(*(system.step(states, np.random.default_rng(seed)) for seed in (1, 2)))
    else:
        system.step(states, Silent())


@pytest.mark.parametrize("name", [name for name in NAMES if not synthetic.system(name).noisy])
def test_a_batch_equals_one_by_one_and_the_states_it_came_from_are_left_alone(name):
    system = synthetic.system(name)
    states = recorded(system.name)[:6, 2].copy()
    before = states.copy()
    together = system.step(states, Silent())
    np.testing.assert_array_equal(states, before)
    alone = np.concatenate([system.step(state[None], Silent()) for state in states])
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-12 * np.abs(together).max())


@pytest.mark.slow
def test_a_thousand_orbits_of_128_steps_take_seconds(system):
    import time

    began = time.perf_counter()
    system.orbits(1000, 128)
    assert time.perf_counter() - began < 20


def test_a_dropped_file_is_found_and_a_taken_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "__path__", [*synthetic.__path__, str(tmp_path)])
    text = ("from synthetic.system import System\n"
            "SYSTEMS = (System('{}', 1, lambda rng, n: rng.normal(size=(n, 1)), lambda x, rng: x / 2),)\n")
    (tmp_path / "halving_dropped.py").write_text(text.format("halving"))
    assert synthetic.system("halving").orbits(2, 3).shape == (2, 3, 1)
    assert "halving_dropped" in synthetic.families()
    (tmp_path / "halving_twice.py").write_text(text.format("halving"))
    with pytest.raises(ValueError, match=r"two systems are named 'halving', one .* in synthetic/halving_twice\.py"):
        synthetic.systems()


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(KeyError, match=r"no system 'henno'; there are .*henon a=1\.4 b=0\.3"):
        synthetic.system("henno")


@pytest.mark.parametrize(("known", "words"), [
    ({"exact": {"regime": "strange"}}, "regime must be one of fixed point, .*got 'strange'"),
    ({"exact": {"colour": 1}}, "colour is no known answer; choose from regime"),
    ({"reported": {"flavour": (1, "me")}}, "flavour is no known answer"),
    ({"reported": {"period": 3}}, r"reported 'period' must be \(value, source\); got 3"),
    ({"reported": {"period": (3, "")}}, r"must be \(value, source\)"),
])
def test_answers_that_nobody_could_check_are_refused(known, words):
    with pytest.raises(ValueError, match=words):
        System("nonsense", 1, lambda rng, n: np.zeros((n, 1)), lambda x, rng: x, **known)


def test_answers_cannot_be_changed():
    with pytest.raises(TypeError):
        synthetic.system("henon a=1.4 b=0.3").exact["regime"] = "orbit"


def test_the_package_never_imports_synthetic():
    for path in pathlib.Path(dynloop.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "synthetic" for name in names), path


# ---- what single families promise -----------------------------------------------------------------------------------

def test_a_frame_keeps_distances():
    columns = frame(np.random.default_rng(0), 9, 4)
    np.testing.assert_allclose(columns.T @ columns, np.eye(4), atol=1e-14)


def test_a_sheared_contraction_grows_before_it_shrinks():
    for name in ("linear 2d sheared", "linear 12d sheared"):
        system = synthetic.system(name)
        away = np.linalg.norm(system.orbits(50, 128) - system.exact["fixed_point"], axis=2)
        assert np.median(away.max(1) / away[:, 0]) > 3
        assert (away[:, -1] < 0.01 * away[:, 0]).all()
    away = np.linalg.norm((straight := linear.linear("straight", (0.9, 0.8))).orbits(50, 20)
                          - straight.exact["fixed_point"], axis=2)
    assert (np.diff(away, axis=1) < 0).all()


@pytest.mark.parametrize("dim", [8, 20])
def test_a_cycle_is_approached_from_as_far_as_asked(dim):
    system = cycles.cycle("far", cycles.random_points(5, dim), rate=0.9, away=10.0)
    radius = math.sqrt(((system.exact["cycle"] - system.exact["cycle"].mean(0)) ** 2).sum(1).mean())
    away = np.linalg.norm(system.orbits(30, 3)[:, :, None] - system.exact["cycle"], axis=3).min(2)
    np.testing.assert_allclose(away[:, 0], 10 * radius, rtol=0.05)
    np.testing.assert_allclose(away[:, 1:] / away[:, :-1], 0.9, rtol=1e-9)


def test_a_curve_is_walked_in_equal_turns():
    plane = cycles.closed_curve(7, 2, turns=3) - 1.5
    angle = np.unwrap(np.arctan2(plane[:, 1], plane[:, 0]))
    np.testing.assert_allclose(np.abs(np.diff(angle)), 2 * np.pi * 3 / 7, rtol=1e-12)


@pytest.mark.parametrize(("lag", "wanted"), [(13, 0.2160), (21, 0.1336), (34, 0.0826), (55, 0.0511), (89, 0.0316)])
def test_the_golden_rotation_nearly_repeats_after_every_fibonacci_number(lag, wanted):
    system = synthetic.system("rotation golden")
    states = system.orbits(5, 200)
    radius = np.linalg.norm(states[:, 0] - record(system, states[:, 0], 610).mean(1), axis=1)
    returns = np.linalg.norm(states[:, lag:] - states[:, :-lag], axis=2) / radius[:, None]
    np.testing.assert_allclose(returns, wanted, rtol=0.01)


def test_turns_are_whole_multiples_only_of_a_fraction():
    assert rotations.rotation("mixed", (rotations.Fraction(1, 3), rotations.GOLDEN)).exact["regime"] == "quasi-periodic"


@pytest.mark.parametrize("n", cat_map.LATTICE_PERIODS)
def test_the_lattice_of_a_cat_map_returns_after_its_period(n):
    a = power = np.array([[2, 1], [1, 1]])
    count = 1
    while (power % n != np.eye(2, dtype=int) % n).any():
        power, count = power @ a % n, count + 1
    assert count == cat_map.LATTICE_PERIODS[n]
    assert count <= 3 * n


def test_a_random_map_without_a_tail_and_a_cycle_is_refused():
    with pytest.raises(ValueError, match=r"of 60 states with seed 7 has no tail of 2 .* choose another seed"):
        finite_maps.random_map(60, 4, seed=7)


def test_the_turning_drift_turns_like_the_log_of_its_radius():
    system = sliders.turning_drift("spiral", 2, speed=0.1, lean=0.6)
    path = system.orbits(5, 4000)
    steps = np.diff(path, axis=1)
    heading = np.unwrap(np.arctan2(steps[..., 1], steps[..., 0]), axis=1)
    first, last = heading[:, 1999] - heading[:, 999], heading[:, 3998] - heading[:, 1999]
    np.testing.assert_allclose(first, math.tan(0.6) * math.log(2), rtol=0.05)
    np.testing.assert_allclose(last, math.tan(0.6) * math.log(2), rtol=0.05)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9, -0.7])
def test_an_autoregression_has_its_closed_moments(coefficient):
    states = nulls.autoregression(coefficient, 64).orbits(60, 200)
    steps = np.diff(states, axis=1)
    assert (steps**2).sum(2).mean() == pytest.approx(2 * 64 * (1 - coefficient), rel=0.02)
    cosine = (steps[:, 1:] * steps[:, :-1]).sum(2) / np.linalg.norm(steps[:, 1:], axis=2) / np.linalg.norm(
        steps[:, :-1], axis=2)
    assert cosine.mean() == pytest.approx(-(1 - coefficient) / 2, abs=0.01)
    assert states[:, 0].std(0).mean() == pytest.approx(states[:, -1].std(0).mean(), rel=0.1)


def test_a_random_walk_spreads_like_the_root_of_time():
    states = nulls.random_walk(8).orbits(300, 129)
    gone = ((states - states[:, :1]) ** 2).sum(2).mean(0)
    np.testing.assert_allclose(gone[[16, 64, 128]], 8 * np.array([16, 64, 128]), rtol=0.1)
