"""Mirroring: planted at known strength, a copied stack, shuffled layers, and alignment by brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Measurement, Outcome, Trajectories, capture, estimate
from dynloop.models import nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.stages import mirroring, monotone_alignment, stage_profile
from dynloop.stages.mirroring import match_layers, match_profiles

QUANTITIES = ("matrix_entropy", "anisotropy", "residual_norm")


def recording(x):
    """States (prompt, layer, token, recurrence, dim) as orbits."""
    prompt, layer, token = (i.ravel() for i in np.indices(x.shape[:3]))
    return Trajectories(x.reshape(-1, *x.shape[3:]), labels={"prompt": prompt, "layer": layer + 1, "token": token})


def of_norms(norms, rng, tokens=4, dim=3):
    """States whose residual norms are given, (prompt, recurrence, layer), in random directions."""
    norms = np.asarray(norms)
    n_prompts, n_recurrences, n_layers = norms.shape
    x = rng.normal(size=(n_prompts, n_layers, tokens, n_recurrences, dim))
    return recording(x / np.linalg.norm(x, axis=-1, keepdims=True) * norms.transpose(0, 2, 1)[:, :, None, :, None])


def standard(x):
    x = x - x.mean()
    return x / np.sqrt((x**2).mean())


def at_strength(curve, strength, rng):
    """A profile that correlates with a given one as said, exactly."""
    own = standard(curve)
    noise = rng.normal(size=len(own))
    noise -= noise.mean()
    noise = standard(noise - own * (noise @ own) / (own @ own))
    return strength * own + np.sqrt(1 - strength**2) * noise


@pytest.mark.parametrize("strength", [-0.6, 0.0, 0.3, 0.8, 1.0])
def test_a_planted_correlation_is_found_exactly(strength, rng):
    curve = rng.normal(size=10)
    loops = np.stack([5 + at_strength(curve, strength, rng), 5 - at_strength(curve, strength, rng)])
    m = mirroring(of_norms(np.repeat(loops[None], 6, 0), rng), of_norms(np.tile(8 + curve, (6, 1, 1)), rng),
                  quantities=["residual_norm"])
    np.testing.assert_allclose(m.values, [strength, -strength], atol=1e-10)
    np.testing.assert_allclose(m["null"][:, 0], m.values)
    np.testing.assert_allclose(m["high"] - m["low"], 0, atol=1e-9)  # all prompts are alike
    assert m.labels["recurrence"].tolist() == [1, 2]


def test_a_planted_correlation_lies_within_the_interval_when_prompts_vary():
    rng = np.random.default_rng(3)
    hits, n = 0, 40
    for _ in range(n):
        curve = standard(rng.normal(size=12))
        loop = 9 + at_strength(curve, 0.7, rng)
        noise = 0.4 * rng.normal(size=(24, 1, 12))
        low_high = mirroring(of_norms(loop + noise, rng, tokens=1), of_norms(np.tile(9 + curve, (24, 1, 1)), rng,
                             tokens=1), quantities=["residual_norm"])
        hits += low_high["low"][0] <= 0.7 <= low_high["high"][0]
    assert hits >= 0.85 * n


def test_layers_that_are_all_doubled_still_mirror_at_one(rng):
    x = rng.normal(size=(5, 4, 6, 1, 3))
    doubled = np.repeat(x, 2, axis=1)
    for loop, reference in ((x, doubled), (doubled, x)):
        m = mirroring(recording(loop), recording(reference), by="cosine")
        assert m["score"][0] == pytest.approx(1)
        assert m["best_score"][0] == pytest.approx(1)
        assert m["p_value"][0] == 1 / 8
        best = mirroring(recording(loop), recording(reference))["best_score"][0]
        assert best == pytest.approx(1)


def feed_forward(model, tokens):
    """States after every layer of a feed-forward model's block, (prompt, layer, token, 1, dim), by its own hooks."""
    seen = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in model.block]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen, 1)[:, :, :, None].double().numpy()


SHAPE = {"width": 16, "n_heads": 2, "injection": "none", "norm": "pre", "loop_norm": False, "n_block": 6}


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """A feed-forward model of 6 layers, a loop whose block is a copy of it, and one with the layers shuffled."""
    control = NanoModel(NanoConfig(**SHAPE, n_recurrences=1, looped=False), seed=1)
    copied = NanoModel(NanoConfig(**SHAPE, n_recurrences=3))
    copied.load_state_dict(control.state_dict())
    tokens = torch.randint(256, (8, 10), generator=torch.Generator().manual_seed(0))
    x = feed_forward(control, tokens)
    prompts = tokens.tolist()
    store = capture(nano(copied), prompts, out=tmp_path_factory.mktemp("m") / "copied", n_recurrences=3,
                    attention=True)
    return recording(x), store, copied, prompts


@pytest.mark.parametrize("by", ["profile", "cosine", "cka"])
def test_a_loop_whose_block_is_a_copied_stack_mirrors_it_at_one(stacks, by):
    reference, store, _, _ = stacks
    m = mirroring(store, reference, by=by)
    first = m.select(recurrence=1)
    assert m.counts() == {Outcome.FOUND: 3}
    for name in ("score", "low", "high", "best_score"):
        assert first[name][0] == pytest.approx(1, abs=1e-5)
    assert first["p_value"][0] == first["smallest_p"][0] == pytest.approx(1 / 6)
    if by != "cka":
        assert first["alignment"][0].tolist() == [1, 2, 3, 4, 5, 6]
    assert (m["score"][1:] < 1 - 1e-4).all()  # later loops start elsewhere


def test_a_loop_that_starts_each_time_anew_mirrors_at_one_in_every_loop(stacks, rng):
    reference, _, _, _ = stacks
    states = np.repeat(reference.states.numpy(), 4, axis=1)
    loop = reference.replace(states=states)
    for by in ("profile", "cosine", "cka"):
        m = mirroring(loop, reference, by=by)
        np.testing.assert_allclose(m["score"], np.ones(4), atol=1e-9)
        np.testing.assert_allclose(m["low"], np.ones(4), atol=1e-9)


def test_attention_mirrors_too(stacks):
    _, store, _, _ = stacks
    own = stage_profile(store, of="attention")
    first = own.select(recurrence=1)
    m = mirroring(own, first, quantities=["sink_score", "mixing", "concentration"])
    assert m["score"][0] == pytest.approx(1)
    assert (m["score"][1:] < 1).all()


@pytest.mark.parametrize("match", [
    lambda order, x: match_profiles(x[:, order], x),
    lambda order, x: match_layers(-((x[:, order][:, :, None] - x[:, None]) ** 2).sum(0)),
], ids=["profile", "layers"])
def test_a_shuffled_copy_stays_inside_the_null(match):
    rng = np.random.default_rng(4)
    n, n_layers, ours, best = 300, 8, 0, 0
    for _ in range(n):
        x = np.cumsum(rng.normal(size=(2, n_layers)), axis=1)  # smooth
        m = match(rng.permutation(n_layers), x)
        ours += (m.shifted >= m.shifted[0] - 1e-12).mean() <= 1 / n_layers
        best += (m.best_shifted >= m.best_shifted[0] - 1e-12).mean() <= 1 / n_layers
    assert ours <= n / n_layers + 3 * np.sqrt(n / n_layers)  # at the level 1/8, no more than one in eight
    assert best <= n / n_layers + 3 * np.sqrt(n / n_layers)


@pytest.mark.parametrize("n", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_models_with_shuffled_layers_stay_among_their_controls_and_the_copy_does_not(n):
    tokens = torch.randint(256, (6, 8), generator=torch.Generator().manual_seed(0))
    rng, hits, copies, shifts = np.random.default_rng(6), 0, [], []
    for seed in range(n):
        model = NanoModel(NanoConfig(**SHAPE, n_recurrences=1), seed=seed)
        reference = stage_profile(recording(feed_forward(model, tokens)))
        layers, shuffled = list(model.block), []
        for _ in range(8):
            model.block = torch.nn.ModuleList(layers[i] for i in rng.permutation(6))
            shuffled.append(stage_profile(recording(feed_forward(model, tokens))))
        one = mirroring(shuffled[0], reference, controls=shuffled[1:])
        hits += one["control_p_value"][0] <= 1 / 8
        shifts.append(one["p_value"][0])
        copies.append(mirroring(reference, reference, controls=shuffled[1:])["control_p_value"][0])
    assert hits <= n / 8 + 3 * np.sqrt(n * 7 / 64)
    # 1 / 8, but for the copies that are a shuffle by chance, of 720
    assert np.mean(np.isclose(copies, 1 / 8)) > 0.9
    # what the docstring warns of: against shifts alone, depth itself makes shuffled models mirror
    assert np.mean(np.isclose(shifts, 1 / 6)) > 0.8


def test_the_line_over_depth_does_not_count_when_it_is_taken_off(rng):
    hits, scores = 0, []
    for _ in range(300):
        curves = np.linspace(0, 5, 8) + rng.normal(size=(2, 2, 8))
        assert match_profiles(*curves).score > 0.3
        m = match_profiles(*curves, detrend=True)
        scores.append(m.score)
        hits += (m.shifted >= m.score - 1e-12).mean() <= 1 / 8
    assert abs(np.mean(scores)) < 0.1
    assert hits <= 300 / 8 + 3 * np.sqrt(300 * 7 / 64)
    line = of_norms(np.tile(np.arange(1.0, 7), (5, 1, 1)), rng)
    flat = mirroring(line, line, quantities=["residual_norm"], detrend=True)
    assert flat.counts() == {Outcome.NOT_FOUND: 1}


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_best_alignment_is_the_best_of_all_that_never_go_back(seed, n, m):
    similarity = np.random.default_rng(seed).normal(size=(n, m))
    value, path = monotone_alignment(similarity)
    best = max(np.mean([similarity[i, j] for i, j in enumerate(a)])
               for a in itertools.combinations_with_replacement(range(m), n))
    assert value == pytest.approx(best)
    assert (np.diff(path) >= 0).all()
    assert similarity[np.arange(n), path].mean() == pytest.approx(best)


def test_the_interval_is_the_jackknife_of_the_score(rng):
    loop, reference = (of_norms(9 + rng.normal(size=(7, 1, 5)), rng) for _ in range(2))
    m = mirroring(loop, reference)
    for p in range(7):
        keep = [q for q in range(7) if q != p]
        one = mirroring(loop.select(prompt=keep), reference.select(prompt=keep))
        assert m["without_prompt"][0, p] == pytest.approx(one.values[0], rel=1e-10)
    without = m["without_prompt"][0]
    half = 2.4469118 * np.sqrt(6 / 7 * ((without - without.mean()) ** 2).sum())  # t(6)
    assert m["high"][0] - m["score"][0] == pytest.approx(half, rel=1e-6)


def test_seeds_are_joined_and_the_excess_is_estimated_over_them(rng):
    rows = []
    for seed in range(5):
        curve = rng.normal(size=6)
        loop = 9 + np.stack([at_strength(curve, 0.9, rng), rng.normal(size=6)])
        rows.append(mirroring(of_norms(np.repeat(loop[None], 4, 0), rng), of_norms(np.tile(9 + curve, (4, 1, 1)), rng),
                              quantities=["residual_norm"], labels={"seed": seed}))
    joined = Measurement.concatenate(rows)
    first = estimate(joined.select(recurrence=1), variable="excess", statistic="mean", resample="seed", method="t")
    second = estimate(joined.select(recurrence=2), variable="excess", statistic="mean", resample="seed", method="t")
    assert first.n_units == 5
    assert first.low > 0.4
    assert second.low < 0 < second.high


def test_profiles_given_as_measurements_are_those_of_the_recordings(rng):
    loop, reference = (recording(rng.normal(size=(5, 4, 6, n, 3))) for n in (3, 1))
    one, other = mirroring(loop, reference), mirroring(stage_profile(loop), stage_profile(reference))
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("by", ["profile", "cosine", "cka"])
def test_some_recurrences_are_those_of_all(by, rng):
    loop, reference = (recording(rng.normal(size=(5, 4, 6, n, 3))) for n in (4, 1))
    every, some = mirroring(loop, reference, by=by), mirroring(loop, reference, by=by, recurrences=[2, 4])
    assert some.labels["recurrence"].tolist() == [2, 4]
    np.testing.assert_allclose(some.values, every.values[[1, 3]], rtol=1e-9)
    with pytest.raises(ValueError, match="among those recorded, 1 to 4; got 9"):
        mirroring(loop, reference, by=by, recurrences=[9])


def test_what_cannot_be_answered_says_why(rng):
    x, y = rng.normal(size=(5, 4, 6, 3, 3)), rng.normal(size=(5, 4, 6, 1, 3))
    x[2, 1, 0, 2] = np.inf
    for by in ("profile", "cosine", "cka"):
        m = mirroring(recording(x), recording(y), by=by)
        assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.FOUND, Outcome.NOT_FINITE]
        assert np.isnan(m["score"][2])
        assert np.isnan(m["null"][2]).all()
        few = mirroring(recording(x[:, :2, :, :2]), recording(y), by=by)
        assert few.counts() == {Outcome.TOO_SHORT: 2}
    loop = recording(x[:, :, :, :2])
    ended = mirroring(loop.replace(lengths=np.where(np.arange(120) == 7, 1, 2)), recording(y))
    assert ended.outcomes.tolist() == [Outcome.FOUND, Outcome.TOO_SHORT]
    flat = of_norms(np.ones((5, 2, 4)), rng)
    assert mirroring(flat, recording(y), quantities=["residual_norm"]).counts() == {Outcome.NOT_FOUND: 2}
    one = mirroring(recording(x[:1]), recording(y[:1]))
    assert np.isnan(one["low"]).all()
    assert np.isfinite(one["score"]).all()


def test_bad_input_is_refused_with_what_to_do(rng):
    x = recording(rng.normal(size=(5, 4, 6, 1, 3)))
    with pytest.raises(ValueError, match="by must be one of"):
        mirroring(x, x, by="rsa")
    with pytest.raises(ValueError, match="quantities must be a list"):
        mirroring(x, x, quantities="anisotropy")
    with pytest.raises(KeyError, match="no variable"):
        mirroring(x, x, quantities=["kurtosis"])
    with pytest.raises(ValueError, match="not known at every depth"):
        mirroring(x, x, quantities=["layer_step"])
    with pytest.raises(ValueError, match="same prompts"):
        mirroring(x, x.select(prompt=[0, 1, 2]))
    with pytest.raises(ValueError, match="5 prompts"):
        mirroring(x.select(prompt=[0, 1, 2]), x.select(prompt=[0, 1, 2]), by="cka")
    with pytest.raises(TypeError, match="Give the recordings"):
        mirroring(stage_profile(x), x, by="cka")
    with pytest.raises(ValueError, match="confidence_level"):
        mirroring(x, x, confidence_level=1.0)
    with pytest.raises(ValueError, match="detrend must be"):
        mirroring(x, x, by="cka", detrend=True)
    with pytest.raises(ValueError, match="control 0 has recurrences"):
        mirroring(x, x, controls=[recording(rng.normal(size=(5, 4, 6, 2, 3)))])
    twice = x.replace(labels={**x.labels, "prompt": x.labels["prompt"] // 2, "start": x.labels["prompt"] % 2})
    with pytest.raises(ValueError, match="one run a prompt"):
        mirroring(twice, twice)
    with pytest.raises(ValueError, match="label 'depth'"):
        mirroring(Measurement("x", {q: np.ones(1) for q in QUANTITIES}, [Outcome.FOUND],
                              labels={"prompt": [0], "recurrence": [1], "layer": [1]}), x)
