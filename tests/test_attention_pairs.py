"""What a capture keeps of attention, the distances between all depths, and when attention settles."""

import math

import numpy as np
import pytest
import torch
from attention_maps import drawn, even, sink

from dynloop import Measurement, Outcome, Trajectories, capture, convergence_time, estimate, open_store, save
from dynloop.attention import (
    attention_distance,
    attention_lag,
    attention_stabilisation,
    attention_statistics,
    column_concentration,
    mixing_score,
    sink_rate,
)
from dynloop.models import nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording import attention_of
from dynloop.recording.prompt_states import prompt_states

TINY = NanoConfig(width=16, n_heads=2)
PROMPTS = [list(range(1, 13)), list(range(20, 32)), list(range(40, 54))]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A store with all pairs, and the maps that the model made, by prompt: (recurrence, layer, head, T, T)."""
    looped = nano(NanoModel(TINY, seed=3))
    store = capture(looped, PROMPTS, out=tmp_path_factory.mktemp("maps") / "s", n_recurrences=24, attention=True,
                    attention_pairs="all")
    maps = {}
    for number, prompt in enumerate(PROMPTS):
        with torch.no_grad(), attention_statistics(looped.module, keep_maps=True, dtype=torch.float64) as seen:
            looped.module(torch.tensor([prompt]), n_recurrences=24)
        calls = [call for call in seen.calls if call.module.startswith("block")]
        maps[number] = torch.stack([call.map[0] for call in calls]).unflatten(0, (24, -1))
    return store, maps


def test_what_a_capture_kept_gives_the_numbers_of_the_maps(recorded):
    store, maps = recorded
    of_store = attention_of(store)
    layers = list(dict.fromkeys(of_store.layer.values.tolist()))
    for measure in (sink_rate, mixing_score, column_concentration):
        m = measure(of_store)
        assert m.n_orbits == 3 * 24 * len(layers) * 2
        assert m.found.all()
        for prompt, own in maps.items():
            direct = measure(own, dims=["recurrence", "layer", "head"])
            for i, layer in enumerate(layers):
                for name in m.variables:
                    got = m.select(prompt=prompt, layer=layer, head=1)[name]
                    np.testing.assert_allclose(got, direct.select(layer=i, head=1)[name], atol=1e-5)


def test_all_pairs_of_a_capture_are_the_distances_of_the_maps(recorded):
    store, maps = recorded
    pairs = attention_of(store, per="pair")
    m = attention_distance(pairs)
    n = 24 * 2
    for prompt, own in maps.items():
        direct = attention_distance(own, dims=["recurrence", "layer", "head"]).values.reshape(2, n, n)
        np.testing.assert_allclose(m.select(prompt=prompt).values.reshape(2, n, n), direct, atol=1e-5)
    # successive maps of a layer, which the statistics compare by themselves
    alone = attention_of(store)
    for row in (0, 5):
        own = pairs.distance.values[row][:, pairs.other_layer.values == pairs.layer.values[row]]
        np.testing.assert_allclose(np.diagonal(own, 1), alone.distance.values[row, 1:], atol=1e-6)


def test_pairs_within_layers_are_those_among_all(recorded, tmp_path):
    store, _ = recorded
    looped = nano(NanoModel(TINY, seed=3))
    within = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=24, attention=True, attention_pairs="layer")
    one, every = attention_of(within, per="pair"), attention_of(store, per="pair")
    assert one.sizes["other"] == 24
    assert set(one.other_layer.values) == {""}
    for row in range(one.sizes["row"]):
        own = every.other_layer.values == one.layer.values[row]
        np.testing.assert_allclose(one.distance.values[row], every.distance.values[row][:, own], atol=1e-6)
    m = attention_distance(one)
    assert m.values.shape == (one.sizes["row"] * 24, 24)
    assert (np.diagonal(m.values.reshape(-1, 24, 24), 0, 1, 2) == 0).all()
    for a, b in zip(attention_stabilisation(one).values, attention_stabilisation(every).values, strict=True):
        assert a == b or (np.isnan(a) and np.isnan(b))


def test_pairs_are_asked_for_rightly(recorded, tmp_path):
    store, _ = recorded
    looped = nano(NanoModel(TINY, seed=3))
    with pytest.raises(ValueError, match="attention_pairs must be None, 'layer' or 'all'"):
        capture(looped, PROMPTS, out=tmp_path / "a", n_recurrences=4, attention_pairs="all")
    with pytest.raises(ValueError, match="attention_pairs must be None"):
        capture(looped, PROMPTS, out=tmp_path / "a", n_recurrences=4, attention=True, attention_pairs="every")
    with pytest.raises(ValueError, match="pairs must be None, 'layer' or 'all'"), \
            attention_statistics(looped.module, pairs="every"):
        pass
    plain = capture(looped, PROMPTS[:1], out=tmp_path / "b", n_recurrences=4, attention=True)
    with pytest.raises(ValueError, match="attention_pairs='layer'"):
        attention_of(plain, per="pair")
    with pytest.raises(ValueError, match="attention per pair is needed"):
        attention_distance(attention_of(plain))
    with pytest.raises(ValueError, match="attention per map is needed"):
        sink_rate(attention_of(store, per="pair"))
    with pytest.raises(ValueError, match="a recording knows its own"):
        mixing_score(attention_of(plain), causal=True)
    with pytest.raises(ValueError, match="keeps the score of position 0"):
        sink_rate(attention_of(plain), position=1)
    with pytest.raises(ValueError, match="older version"):
        column_concentration(attention_of(plain).drop_vars("concentration"))
    with pytest.raises(ValueError, match="older version"):
        column_concentration(attention_of(plain).drop_vars("n_positions"))


def test_too_many_pairs_are_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("dynloop.recording.attention._MOST_PAIRS", 1000)
    with pytest.raises(ValueError, match=r"at most 0 are held. Use a smaller batch_size"):
        capture(nano(NanoModel(TINY)), PROMPTS, out=tmp_path / "s", n_recurrences=8, attention=True,
                attention_pairs="all")


def test_recurrences_after_the_end_of_a_loop_are_too_short_and_not_divergence(recorded):
    store, _ = recorded
    of_store = attention_of(store)
    ended = of_store.assign_coords(n_recurrences=("row", np.full(of_store.sizes["row"], 20)))
    for name in ("sink_score", "entropy", "maximum", "distance", "concentration"):
        ended[name] = ended[name].where(ended.recurrence <= 20)
    m = mixing_score(ended)
    assert set(m.select(recurrence=[21, 24]).outcomes) == {Outcome.TOO_SHORT}
    assert m.select(recurrence=20).found.all()
    lost = of_store.copy()
    lost["entropy"] = lost["entropy"].where(lost.recurrence <= 20)
    assert set(mixing_score(lost).select(recurrence=21).outcomes) == {Outcome.NOT_FINITE}


def approach(rate, n=64, tokens=12):
    away = rate ** torch.arange(n, dtype=torch.float64)[:, None, None] / 2
    return (1 - away) * torch.eye(tokens, dtype=torch.float64) + away * even(tokens)


@pytest.mark.parametrize(("rate", "expected"), [(0.5, 10), (0.7, 20), (0.25, 5)])
def test_a_map_that_approaches_its_limit_stabilises_when_the_closed_form_says(rate, expected):
    m = attention_stabilisation(approach(rate), dims=["recurrence"])
    assert m.values[0] == expected == math.ceil(math.log(1e-3) / math.log(rate))


def test_stabilisation_is_the_convergence_time_of_the_maps_as_states():
    maps = torch.stack([approach(rate) for rate in (0.3, 0.6, 0.8, 0.95, 0.99)])
    wander = drawn(1, 64, 12, 12, seed=1)
    maps = torch.cat((maps, wander))
    expected = convergence_time(Trajectories(maps.flatten(2)))
    m = attention_stabilisation(maps, dims=["head", "recurrence"])
    assert list(m.outcomes) == list(expected.outcomes)
    assert m.outcomes[0] is Outcome.FOUND
    assert m.outcomes[-1] is Outcome.NOT_CONVERGED
    np.testing.assert_array_equal(m.values, expected["time"])


def test_constant_maps_have_settled_from_the_start_and_short_or_broken_ones_have_no_time():
    still = sink(12).expand(16, 12, 12)
    assert attention_stabilisation(still, dims=["recurrence"]).values[0] == 0
    assert list(attention_stabilisation(still[:7], dims=["recurrence"]).outcomes) == [Outcome.TOO_SHORT]
    broken = still.clone()
    broken[9:] = math.nan
    m = attention_stabilisation(broken, dims=["recurrence"])
    assert list(m.outcomes) == [Outcome.NOT_FINITE]
    assert m["n_recorded"][0] == 9
    assert np.isnan(m.values[0])


def test_the_lag_has_the_sign_of_who_comes_later_and_an_interval_over_prompts():
    prompt = np.repeat(np.arange(40), 2)
    rng = np.random.default_rng(0)
    late = rng.integers(1, 4, 80)
    state = Measurement("convergence_time", {"time": np.full(40, 10.0)}, [Outcome.FOUND] * 39 + [Outcome.NOT_CONVERGED],
                        labels={"prompt": np.arange(40)}, settings={"tolerance": 1e-3, "relative_to": "start"})
    heads = Measurement("attention_stabilisation", {"time": 10.0 + late}, [Outcome.FOUND] * 80,
                        labels={"prompt": prompt, "head": np.tile([0, 1], 40)}, settings={"tolerance": 1e-3})
    m = attention_lag(heads, state)
    assert list(m.outcomes[-2:]) == [Outcome.NOT_CONVERGED] * 2
    assert (m["order"][-2:] == "").all()
    np.testing.assert_array_equal(m.values[:-2], late[:-2])
    assert set(m["order"][:-2]) == {"state first"}
    found = estimate(m, statistic="mean", resample="prompt")
    assert found.low <= late[:-2].mean() <= found.high
    assert found.low > 1
    assert estimate(m, statistic="share", variable="order", of="state first", resample="prompt").value == 1


def test_a_lag_needs_two_measurements_that_belong_together():
    def times(name, n=2, **settings):
        return Measurement(name, {"time": np.arange(float(n))}, [Outcome.FOUND] * n,
                           labels={"prompt": np.arange(n)}, settings={"tolerance": 1e-3, **settings})

    heads = times("attention_stabilisation")
    with pytest.raises(ValueError, match="state must be the measurement of convergence_time"):
        attention_lag(heads, heads)
    with pytest.raises(ValueError, match="one tolerance"):
        attention_lag(heads, times("convergence_time", tolerance=0.1))
    with pytest.raises(ValueError, match="one tolerance relative to the start"):
        attention_lag(heads, times("convergence_time", relative_to="limit"))
    with pytest.raises(ValueError, match="was not measured"):
        attention_lag(heads, times("convergence_time", n=1))
    with pytest.raises(ValueError, match="needs the label prompt"):
        attention_lag(heads, Measurement("convergence_time", {"time": np.zeros(1)}, [Outcome.FOUND]))
    layers = Measurement("convergence_time", {"time": np.zeros(2)}, [Outcome.FOUND] * 2,
                         labels={"prompt": [0, 0], "layer": [1, 2]}, settings={"tolerance": 1e-3})
    with pytest.raises(ValueError, match="several layers"):
        attention_lag(heads, layers)


def test_whole_prompts_hold_the_states_of_all_their_tokens_in_order(recorded):
    store, _ = recorded
    for orbit in prompt_states(store, layer=2):
        prompt = int(orbit.labels["prompt"][0])
        tokens = store.trajectories(prompt=prompt, layer=2)
        assert orbit.n_orbits == 1
        assert orbit.dim == len(PROMPTS[prompt]) * tokens.dim
        for token in (0, 5):
            own = tokens.select(token=token).states[0]
            assert torch.equal(orbit.states[0, :, token * tokens.dim:(token + 1) * tokens.dim], own)
    assert [o.n_orbits for o in prompt_states(store, prompt=1)] == [2]  # both layers
    with pytest.raises(ValueError, match="no label 'nonsense'"):
        list(prompt_states(store, nonsense=1))


def test_a_captured_model_tells_whether_attention_follows_the_state(recorded):
    store, _ = recorded
    heads = attention_stabilisation(attention_of(store, per="pair"))
    state = Measurement.concatenate([convergence_time(orbit) for orbit in prompt_states(store, layer=2)])
    m = attention_lag(heads, state)
    assert m.n_orbits == 3 * 2 * 2
    assert (np.isfinite(m.values) == m.found).all()


# ---- distances between all pairs while a model runs

class EagerAttention(torch.nn.Module):
    """Attention written out, of one or several head counts in turn."""

    def __init__(self, heads=(2,), hidden=False):
        super().__init__()
        self.heads, self.hidden = heads, hidden
        self.attention = torch.nn.ModuleList(torch.nn.Identity() for _ in heads)

    def forward(self, x, n=3):
        for _ in range(n):
            for i, heads in enumerate(self.heads):
                q = x.unflatten(-1, (heads, -1)).transpose(1, 2)
                scores = q @ q.mT
                if self.hidden:
                    scores = scores.sort(-1).values  # a step that cannot be done in blocks
                weights = self.attention[i](scores.softmax(-1))
                x = 0.5 * x + (weights @ q).transpose(1, 2).flatten(2)
        return x


@pytest.mark.parametrize("tokens", [5, 40, 150])
@pytest.mark.parametrize("keep_maps", [False, True])
def test_pairs_of_every_forward_are_the_distances_of_its_maps(tokens, keep_maps):
    torch.manual_seed(0)
    model = NanoModel(TINY, seed=2)
    with torch.no_grad(), attention_statistics(model, keep_maps=True, dtype=torch.float64) as plain:
        for seed in (0, 1):
            model(torch.full((2, tokens), seed) + torch.arange(tokens), n_recurrences=3)
    with torch.no_grad(), attention_statistics(model, pairs="all", distance=False, keep_maps=keep_maps) as seen:
        for seed in (0, 1):
            model(torch.full((2, tokens), seed) + torch.arange(tokens), n_recurrences=3)
    assert [found.forward for found in seen.pairs] == [0, 1]
    assert all(math.isnan(call.distance.max()) for call in seen.calls)  # which were not asked for
    n = len(plain.calls) // 2
    for i, found in enumerate(seen.pairs):
        maps = torch.stack([call.map for call in plain.calls[i * n:(i + 1) * n]], 2)  # (B, H, n, T, T)
        slow = torch.linalg.matrix_norm(maps[:, :, :, None] - maps[:, :, None])
        torch.testing.assert_close(found.distances, slow, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norms, torch.linalg.matrix_norm(maps), atol=1e-5, rtol=0)
        assert found.layers == tuple(call.layer for call in plain.calls[:n])
        assert found.recurrences == tuple(call.recurrence for call in plain.calls[:n])


def test_pairs_within_layers_come_layer_by_layer():
    model = NanoModel(TINY, seed=2)
    with torch.no_grad(), attention_statistics(model, pairs="layer") as seen:
        model(torch.arange(10)[None], n_recurrences=4)
    inside = [found for found in seen.pairs if len(found.layers) == 4]
    assert len(inside) == 2
    for found in inside:
        own = [call for call in seen.calls if call.layer == found.layers[0]]
        for call in own[1:]:
            torch.testing.assert_close(found.distances[:, :, call.recurrence, call.recurrence - 1],
                                       call.distance.double(), atol=1e-6, rtol=1e-5)


def test_an_error_while_the_model_runs_is_its_own():
    model = NanoModel(TINY, seed=2)
    with pytest.raises(IndexError), torch.no_grad(), attention_statistics(model, pairs="all") as seen:
        model(torch.arange(250, 260)[None], n_recurrences=2)  # 256 tokens are known
    assert seen.pairs == []


def test_maps_that_cannot_be_computed_again_have_no_pairs_unless_they_are_kept():
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    layer = {"layer": lambda module, call: "attention"}
    model = EagerAttention(hidden=True)
    with pytest.raises(ValueError, match="pairs need maps that can be computed again"), torch.no_grad(), \
            attention_statistics(model, pairs="all", **layer):
        model(x)
    with torch.no_grad(), attention_statistics(model, pairs="all", keep_maps=True, **layer) as seen:
        model(x)
    maps = torch.stack([call.map for call in seen.calls], 2).double()
    slow = torch.linalg.matrix_norm(maps[:, :, :, None] - maps[:, :, None])
    torch.testing.assert_close(seen.pairs[0].distances, slow, atol=1e-6, rtol=0)


def test_pairs_of_maps_of_different_shapes_are_refused():
    model = EagerAttention(heads=(2, 4))
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    layer = {"layer": lambda module, call: call % 2}
    with pytest.raises(ValueError, match="pairs need maps of one shape"), torch.no_grad(), \
            attention_statistics(model, pairs="all", **layer):
        model(x)
    with torch.no_grad(), attention_statistics(model, pairs="layer", **layer) as seen:
        model(x)
    assert [found.distances.shape for found in seen.pairs] == [(1, 2, 3, 3), (1, 4, 3, 3)]


def test_whole_prompts_need_prompts_and_the_same_tokens_in_every_layer(tmp_path):
    states = np.zeros((3, 4, 2))
    with pytest.raises(ValueError, match="the store has no token"):
        list(prompt_states(save(Trajectories(states, labels={"prompt": [0, 0, 1]}), tmp_path / "a")))
    mixed = Trajectories(states, labels={"prompt": [0, 0, 0], "token": [0, 1, 0], "layer": [1, 1, 2]})
    with pytest.raises(ValueError, match=r"different tokens\. Select one layer"):
        list(prompt_states(save(mixed, tmp_path / "b")))
    assert [o.dim for o in prompt_states(open_store(tmp_path / "b"), layer=1)] == [4]
    crossed = Trajectories(np.zeros((4, 4, 2)), labels={"prompt": 0, "token": [0, 1, 0, 0], "layer": [1, 1, 2, 3]})
    with pytest.raises(ValueError, match=r"different tokens\. Select one layer"):
        list(prompt_states(save(crossed, tmp_path / "c")))
