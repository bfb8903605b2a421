"""Figures of stages and attention: what is drawn is what was measured, nulls and intervals stand beside it."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import torch
import xarray
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from dynloop import Measurement, Outcome, Trajectories, estimate
from dynloop.analyzers import contraction_rate
from dynloop.attention import attention_distance, attention_stabilisation
from dynloop.attention.nulls import uniform_concentration, uniform_mixing, uniform_sink_score
from dynloop.report import figures
from dynloop.report.figures import alt_of, caption_of, draw
from dynloop.report.figures.stage_curves import spaced
from dynloop.report.figures.style import COLOURS, STYLE, families, looks_of
from dynloop.stages import layer_cka, layer_cosine, mirroring, profile_by, stage_clusters, stage_profile

PROMPTS, LAYERS, TOKENS, STEPS, DIM = 6, 4, 5, 6, 3
NAMES = ("attention_settling", "depth_matrix", "mirroring_scores", "stage_curves", "stage_strips")


def orbits_of(x):
    """States (prompt, layer, token, recurrence, dim) as orbits."""
    prompt, layer, token = (i.ravel() for i in np.indices(x.shape[:3]))
    return Trajectories(x.reshape(-1, *x.shape[3:]), labels={"prompt": prompt, "layer": layer + 1, "token": token})


@pytest.fixture(scope="module")
def stack():
    """A feed-forward stack: states of four layers with a profile of its own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(PROMPTS, LAYERS, TOKENS, 1, DIM)) * np.array([1, 4, 3, 0.5])[:, None, None, None]
    x[:, 1:3, 0] *= 6
    return x


@pytest.fixture(scope="module")
def loop(stack):
    """A loop that repeats it, less exactly with every recurrence."""
    noise = np.random.default_rng(1).normal(size=(PROMPTS, LAYERS, TOKENS, STEPS, DIM))
    return orbits_of(stack + 0.05 * np.arange(STEPS)[:, None] * noise)


@pytest.fixture(scope="module")
def profile(loop):
    return stage_profile(loop)


def attended(n_prompts=4, n_layers=2, n_heads=2, n_steps=16, n_tokens=6):
    """A profile of attention as `stage_profile` gives it, of known numbers over their nulls."""
    prompt, recurrence, layer = (i.ravel() for i in np.indices((n_prompts, n_steps, n_layers)))
    score = uniform_sink_score(n_tokens) + 0.1 + 0.01 * prompt
    mixing, concentration = uniform_mixing(n_tokens) * 0.5, uniform_concentration(n_tokens) + 0.2
    n = len(prompt)
    values = {"sink_score": score, "mixing": np.full(n, mixing), "concentration": np.full(n, concentration),
              "sink_rate": np.zeros(n), "sink_excess": score - uniform_sink_score(n_tokens),
              "mixing_share": np.full(n, 0.5), "concentration_excess": np.full(n, 0.2)}
    return Measurement("stage_profile", values, [Outcome.FOUND] * n, settings={"of": "attention"}, labels={
        "prompt": prompt, "recurrence": recurrence + 1, "layer": np.array(["a", "b"])[layer],
        "depth": 1 + recurrence * n_layers + layer, "percent": 25.0 + 50 * layer})


def maps(n_prompts=3, n_layers=2, n_heads=2, n_steps=16, n_tokens=6):
    """Maps that approach even attention by half a step: constant from step 10 on; (prompt, recurrence, layer, ...)."""
    even = torch.ones(n_tokens, n_tokens).tril() / torch.arange(1, n_tokens + 1)[:, None]
    away = 0.5 ** torch.arange(n_steps, dtype=torch.float64)
    share = away[None, :, None, None] / (2 + torch.arange(n_layers)[None, None, :, None]) * torch.ones(
        n_prompts, 1, 1, n_heads)
    return share[..., None, None] * torch.eye(n_tokens) + (1 - share[..., None, None]) * even


@pytest.fixture(scope="module")
def settled():
    return attention_stabilisation(maps(n_steps=64))


@pytest.fixture(scope="module")
def state():
    return Measurement("convergence_time", {"time": np.array([11.0, 12.0, 13.0])}, [Outcome.FOUND] * 3,
                       labels={"prompt": np.arange(3)}, settings={"tolerance": 1e-3, "relative_to": "start"})


@pytest.fixture(scope="module")
def made(loop, stack, profile, settled, state):
    """Figures by name: functions that make them anew."""
    controls = [orbits_of(stack[:, np.random.default_rng(k).permutation(LAYERS)].repeat(STEPS, axis=3))
                for k in range(2)]
    mirrored = mirroring(loop, orbits_of(stack), controls=controls)
    stages = stage_clusters(loop, candidates=(2, 3), n_splits=2, n_permutations=100)
    reference, distance = stage_profile(orbits_of(stack)), attention_distance(maps())
    return {
        "attention_settling": lambda: figures.attention_settling(settled, state),
        "depth_matrix": lambda: figures.depth_matrix(layer_cosine(loop)),
        "depth_matrix-attention": lambda: figures.depth_matrix(distance),
        "mirroring_scores": lambda: figures.mirroring_scores(mirrored),
        "stage_curves": lambda: figures.stage_curves(profile, reference=reference),
        "stage_curves-recurrence": lambda: figures.stage_curves(profile, grouping="recurrence", reference=reference),
        "stage_curves-layer": lambda: figures.stage_curves(attended(), grouping="layer",
                                                           quantities=["sink_score", "sink_rate", "mixing",
                                                                       "concentration"]),
        "stage_strips": lambda: figures.stage_strips(stages),
    }


MADE = (*NAMES, "depth_matrix-attention", "stage_curves-recurrence", "stage_curves-layer")


@pytest.mark.parametrize("name", MADE)
def test_a_figure_has_words_with_n_and_its_text_stays_within_it(name, made):
    figure = made[name]()
    caption, alt = caption_of(figure), alt_of(figure)
    assert re.search(r"\bn = \d", caption), caption
    assert caption.endswith(".")
    assert len(alt) > 40
    assert alt.endswith(".")
    assert "nan" not in (caption + alt).lower().split()
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        canvas.draw()
    whole = figure.bbox.padded(1)
    texts = [text for axes in figure.axes for text in [*axes.texts, axes.xaxis.label, axes.yaxis.label]]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        for axis, view in ((axes.xaxis, axes.viewLim.intervalx), (axes.yaxis, axes.viewLim.intervaly)):
            texts += [tick.label1 for tick in axis.get_major_ticks() if min(view) <= tick.get_loc() <= max(view)]
    for text in filter(lambda text: text.get_visible() and text.get_text(), texts):
        box = text.get_window_extent(canvas.get_renderer())
        assert whole.containsx(box.x0), text
        assert whole.containsx(box.x1), text
        assert whole.containsy(box.y0), text
        assert whole.containsy(box.y1), text


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_well_formed(name, made):
    root = ElementTree.fromstring(draw(name, made[name]()).svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert root.get("role") == "img"


@pytest.mark.parametrize("name", ["depth_matrix", "stage_strips"])
def test_the_same_numbers_give_the_same_bytes(name, made):
    one, other = draw(name, made[name]()), draw(name, made[name]())
    assert (one.svg, one.png, one.pdf, one.caption, one.alt) == (other.svg, other.png, other.pdf, other.caption,
                                                                 other.alt)


@pytest.mark.parametrize("grouping", ["depth", "recurrence", "layer"])
def test_the_lines_and_bands_of_stages_are_those_of_profile_by(grouping, profile):
    figure = figures.stage_curves(profile, grouping=grouping, quantities=["anisotropy"])
    found = profile_by(profile, grouping, variable="anisotropy")
    axes = figure.axes[0]
    drawn = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])
    np.testing.assert_allclose(drawn, found["mean"].values.ravel())
    band = np.concatenate([path.vertices[:, 1] for c in axes.collections for path in c.get_paths()])
    assert band.min() == pytest.approx(found["low"].values.min())
    assert band.max() == pytest.approx(found["high"].values.max())
    assert "95 % interval of the mean over 6 prompts" in caption_of(figure)


def test_depths_stand_in_a_row_numbered_by_recurrence(profile):
    axes = figures.stage_curves(profile, quantities=["residual_norm"]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list("123456")
    np.testing.assert_allclose(axes.get_xticks(), LAYERS * np.arange(STEPS) + (1 + LAYERS) / 2)


def test_recurrences_that_were_left_out_break_the_line(profile):
    some = profile.select(recurrence=[1, 2, 6])
    axes = figures.stage_curves(some, quantities=["residual_norm"]).axes[0]
    assert [len(line.get_ydata()) for line in axes.lines] == [LAYERS] * 3
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "6"]
    assert "(1, 2, 6)" in caption_of(figures.stage_curves(some))


def test_the_reference_is_drawn_in_every_recurrence_at_its_own_means(profile, stack):
    reference = stage_profile(orbits_of(stack))
    figure = figures.stage_curves(profile, quantities=["anisotropy"], reference=reference)
    dashed = [line for line in figure.axes[0].lines if len(line.get_ydata()) == LAYERS]
    assert len(dashed) == STEPS
    mean = reference["anisotropy"].reshape(PROMPTS, LAYERS).mean(0)
    for line in dashed:
        np.testing.assert_allclose(line.get_ydata(), mean)
    np.testing.assert_allclose(dashed[1].get_xdata(), LAYERS + np.arange(1, LAYERS + 1))
    assert "feed-forward reference" in caption_of(figure)
    with pytest.raises(ValueError, match=r"no recurrences to be drawn over: leave it out"):
        figures.stage_curves(profile, grouping="layer", reference=reference)


def test_attention_stands_beside_its_closed_form_null():
    figure = figures.stage_curves(attended(n_tokens=6), grouping="recurrence")
    nulls = [uniform_sink_score(6), uniform_mixing(6), uniform_concentration(6)]
    for axes, null in zip(figure.axes, nulls, strict=True):
        assert any(np.allclose(line.get_ydata(), null) for line in axes.lines)
    assert "uniform causal attention" in caption_of(figure)
    own = figures.stage_curves(attended(), quantities=["sink_excess", "mixing_share", "concentration_excess"])
    assert [min(np.ptp(line.get_ydata()) for line in axes.lines) for axes in own.axes] == [0, 0, 0]
    assert [float(next(line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2))
            for axes in own.axes] == [0, 1, 0]


def test_curves_of_recorded_attention_stand_beside_their_nulls():
    names = {"sink_score": uniform_sink_score(8), "entropy": uniform_mixing(8),
             "concentration": uniform_concentration(8)}
    data = {name: (("row", "recurrence"), np.full((4, 9), 0.5)) for name in (*names, "distance")}
    attention = xarray.Dataset(data, attrs={"per": "map", "causal": 1}, coords={
        "layer": ("row", ["a", "b"] * 2), "prompt": ("row", np.arange(4) // 2), "n_positions": ("row", [8] * 4),
        "recurrence": np.arange(1, 10)})
    figure = figures.attention_curves(attention)
    for axes, name in zip(figure.axes, data, strict=True):
        assert any(np.allclose(line.get_ydata(), names.get(name, -1)) for line in axes.lines) == (name in names)
    assert "Dotted: uniform attention" in caption_of(figure)


def test_one_prompt_has_no_interval_and_says_so(profile):
    figure = figures.stage_curves(profile.select(prompt=0), quantities=["anisotropy"])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), profile.select(prompt=0)["anisotropy"])
    assert "No interval is drawn" in caption_of(figure)
    assert not figure.legends


def test_depths_that_one_prompt_alone_reaches_are_left_out_and_counted(profile):
    outcomes = profile.outcomes.copy()
    outcomes[(profile.labels["prompt"] > 0) & (profile.labels["recurrence"] == STEPS)] = Outcome.TOO_SHORT
    figure = figures.stage_curves(dataclasses.replace(profile, outcomes=outcomes), quantities=["anisotropy"])
    assert f"Left out: {LAYERS} depths that a single prompt reaches." in caption_of(figure)
    assert len(figure.axes[0].get_xticks()) == STEPS - 1


def test_of_many_recurrences_eight_are_drawn_at_equal_ratios():
    np.testing.assert_array_equal(spaced(np.arange(1, 129), by_ratio=True), 2 ** np.arange(8))
    np.testing.assert_array_equal(spaced(np.arange(15), by_ratio=False), 2 * np.arange(8))
    np.testing.assert_array_equal(spaced(np.arange(3), by_ratio=True), np.arange(3))
    figure = figures.stage_curves(attended(n_steps=40), grouping="recurrence", quantities=["sink_score"])
    assert sum(str(line.get_label()).startswith("recurrence") for line in figure.axes[0].lines) == 8


def test_a_matrix_holds_the_cosines_and_marks_the_recurrences(loop):
    found = layer_cosine(loop)
    figure = figures.depth_matrix(found)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), found.values)
    assert len(axes.lines) == 2 * (STEPS - 1)
    assert figure.axes[1].get_ylabel() == "cosine of the states of a token (1: alike)"
    same = (found["layer"].values[:, None] == found["other_layer"].values) & ~np.eye(LAYERS * STEPS, dtype=bool)
    assert f"One layer in different recurrences: {found.values[same].mean():.2f}" in alt_of(figure)


def test_a_matrix_against_a_stack_is_numbered_by_its_layers(loop, stack):
    figure = figures.depth_matrix(layer_cka(loop, orbits_of(stack)))
    axes = figure.axes[0]
    assert axes.get_xlabel() == "layer"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list("1234")
    assert "centred kernel alignment" in figure.axes[1].get_ylabel()


def test_a_matrix_of_attention_is_the_mean_over_prompts_and_heads():
    found = attention_distance(maps())
    n = found.values.shape[1]
    figure = figures.depth_matrix(found)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), found["distance"].reshape(-1, n, n).mean(0))
    assert "mean over 3 prompts and 2 heads" in caption_of(figure)
    assert f"Uniform attention is {found['null'][0]:.3g}" in caption_of(figure)
    share = figures.depth_matrix(found, variable="relative")
    np.testing.assert_allclose(share.axes[0].images[0].get_array(), found["relative"].reshape(-1, n, n).mean(0))


def test_maps_compared_within_layers_get_a_panel_a_layer():
    parts = [attention_distance(maps()[:, :, la], dims=["prompt", "recurrence", "head"]) for la in range(2)]
    joined = Measurement.concatenate([dataclasses.replace(part, labels={**part.labels, "layer": np.full(
        part.n_orbits, f"block.{la}")}) for la, part in enumerate(parts)])
    figure = figures.depth_matrix(joined)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["block.0", "block.1"]
    for axes, part in zip(figure.axes, parts, strict=False):
        np.testing.assert_allclose(axes.images[0].get_array(), part["distance"].reshape(-1, 16, 16).mean(0))


def test_mirroring_shows_scores_shifts_and_controls(made, loop, stack):
    figure = made["mirroring_scores"]()
    found = mirroring(loop, orbits_of(stack))
    axes = figure.axes[0]
    assert any(len(line.get_ydata()) == STEPS and np.allclose(line.get_ydata(), found["score"]) for line in axes.lines)
    bands = [line.get_ydata() for line in axes.lines if line.get_linewidth() == 7]
    np.testing.assert_allclose(bands, np.stack([found["null"][:, 1:].min(1), found["null"][:, 1:].max(1)], 1))
    assert sum(line.get_marker() == "x" for line in axes.lines) == 2
    caption = caption_of(figure)
    assert "least to largest score of the 3 circular shifts; no p-value can be below 0.25" in caption
    assert "2 controls" in caption
    assert "interval over prompts (jackknife" in caption


def test_strips_hold_the_sequences_and_the_agreement_with_its_interval(made, loop):
    stages = stage_clusters(loop, candidates=(2, 3), n_splits=2, n_permutations=100)
    figure = made["stage_strips"]()
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), stages.sequences)
    assert [text.get_text() for text in figure.axes[0].texts] == [str(k) for k in stages.sequences.ravel()]
    e = estimate(stages.by_prompt, statistic="mean", variable="agreement", resample="prompt", method="t")
    caption = caption_of(figure)
    assert f"Loops agree at {e.value:.3g}"[:18] in caption
    assert "adjusted Rand index" in caption
    assert f"p = {stages.p_value:.3g}" in caption


def test_settling_holds_the_times_of_every_head_the_state_and_their_order(settled, state):
    figure = figures.attention_settling(settled, state)
    axes = figure.axes[0]
    own = settled.select(layer=0, head=0)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        f"layer {la}, head {he} (3/3)" for la in (0, 1) for he in (0, 1)]
    assert own["time"].tolist() == [10, 10, 10]  # 0.5^10 < 1e-3
    assert any(text.get_text().startswith("10.0 [10.0, 10.0]") for text in axes.texts)
    assert any(np.allclose(line.get_xdata(), 12) for line in axes.lines)
    caption = caption_of(figure)
    assert "The state of the prompt (line): 12 [9.52, 14.5] recurrences, over 3 prompts" in caption
    assert "Attention less state: -2" in caption
    assert "attention first 100" in caption
    assert "state" not in alt_of(figures.attention_settling(settled))


def test_heads_that_never_settle_are_counted_and_many_heads_make_one_row_a_layer():
    n = 40
    prompt, head = np.arange(2 * n) // n, np.arange(2 * n) % n
    outcomes = np.where(head == 0, Outcome.NOT_CONVERGED, Outcome.FOUND)
    heads = Measurement("attention_stabilisation", {"time": np.where(head == 0, np.nan, 5.0 + prompt)}, outcomes,
                        labels={"prompt": prompt, "layer": np.zeros(2 * n, dtype=int), "head": head})
    figure = figures.attention_settling(heads)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["layer 0, all heads (78/80)"]
    assert "2 not converged" in caption_of(figure) or "; 2 " in caption_of(figure)


def nothing_found(name, **variables):
    n = 4
    return Measurement(name, {k: np.full((n, v) if v else n, np.nan) for k, v in variables.items()},
                       [Outcome.TOO_SHORT] * n, labels={"prompt": np.arange(n), "recurrence": np.ones(n, dtype=int),
                                                        "layer": np.ones(n, dtype=int), "depth": np.ones(n, dtype=int),
                                                        "percent": np.full(n, 50.0)})


@pytest.mark.parametrize(("make", "words"), [
    (lambda: figures.stage_curves(nothing_found("stage_profile", matrix_entropy=0)), "no stages to draw"),
    (lambda: figures.depth_matrix(nothing_found("attention_distance", distance=4, relative=4, null=0)),
     "no attention distances to draw"),
    (lambda: figures.depth_matrix(layer_cosine(orbits_of(np.zeros((2, 2, 2, 2, 2))))), "no pairs of depths to draw"),
    (lambda: figures.mirroring_scores(nothing_found("mirroring", score=0, low=0, high=0, p_value=0, smallest_p=0,
                                                    null=3)), "no mirroring to draw"),
    (lambda: figures.attention_settling(nothing_found("attention_stabilisation", time=0)),
     "no attention that becomes constant to draw"),
], ids=["stages", "distances", "pairs", "mirroring", "settling"])
def test_what_is_empty_is_said_in_the_figure_and_in_its_words(make, words):
    figure = make()
    assert words in " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "to draw" in alt_of(figure)


@pytest.mark.parametrize("name", NAMES)
def test_something_else_is_refused_with_what_came(name):
    with pytest.raises(TypeError, match=r"got ndarray"):
        getattr(figures, name)(np.ones(3))


@pytest.mark.parametrize(("make", "words"), [
    (lambda p: figures.stage_curves(p, grouping="colour"), r"grouping must be one of depth.*got 'colour'"),
    (lambda p: figures.stage_curves(p, quantities="anisotropy"), r"quantities must be one to 6 names"),
    (lambda p: figures.stage_curves(p, quantities=["nonsense"]), r"has no variable 'nonsense'"),
    (lambda p: figures.stage_curves(p, resample="seed"), r"resample must name a label of the profile.*got 'seed'"),
    (lambda p: figures.stage_curves(p, confidence_level=2), r"confidence_level"),
    (lambda p: figures.stage_curves(contraction_rate(orbits_of(np.ones((2, 1, 1, 4, 2))))), r"no label 'recurrence'"),
    (lambda p: figures.depth_matrix(xarray.DataArray(np.ones((2, 2)), name="x")), r"got an array 'x'"),
    (lambda p: figures.depth_matrix(attention_distance(maps()), variable="null"), r"variable must be one of distance"),
    (lambda p: figures.depth_matrix(p), r"drawn from attention_distance"),
    (lambda p: figures.mirroring_scores(p), r"drawn from mirroring.*no variable 'score'"),
    (lambda p: figures.attention_settling(p), r"drawn from attention_stabilisation"),
], ids=range(11))
def test_what_cannot_be_drawn_is_refused_with_what_is_needed(make, words, profile):
    with pytest.raises(ValueError, match=words):
        make(profile)


def test_a_model_keeps_its_colour_where_another_has_no_numbers():
    rng = np.random.default_rng(0)
    t = 0.7 ** np.arange(40)[:, None]
    orbits = Trajectories(rng.normal(size=(12, 1, 4)) + t * rng.normal(size=(12, 1, 4)),
                          labels={"prompt": np.arange(12) // 2, "model": ["second"] * 12})
    rate = estimate(contraction_rate(orbits), statistic="median", resample="prompt")
    among = ["first", "second"]
    figure = figures.rates_by_layer([rate], among=among)
    assert {to_rgb(line.get_color()) for line in figure.axes[0].lines} == {to_rgb(COLOURS[1])}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["second"]
    assert looks_of(["second"], among)["second"] == looks_of(among)["second"]
    assert looks_of(["second"])["second"]["color"] == COLOURS[0]


def test_only_fonts_that_are_here_are_named_and_a_missing_glyph_is_no_warning():
    assert families([]) == ["DejaVu Sans"]
    assert families(["SimHei", "Noto Sans CJK JP", "Comic Sans"]) == ["DejaVu Sans", "Noto Sans CJK JP", "SimHei"]
    assert STYLE["font.family"] == families()
    rate = Measurement("rate", {"rate": np.linspace(0.7, 0.8, 8)}, [Outcome.FOUND] * 8,
                       labels={"prompt": np.arange(8)})
    figure = figures.forest([estimate(rate, statistic="mean", resample="prompt", method="t")], labels=["循環模型"])
    assert draw("names", figure).png.startswith(b"\x89PNG")  # warnings are errors here


@pytest.mark.parametrize(("shape", "grouping"), [((4, 1, 5, 4, 3), "recurrence"), ((4, 3, 5, 1, 3), "layer")])
def test_the_interval_of_a_single_point_is_drawn(shape, grouping):
    single = stage_profile(orbits_of(np.random.default_rng(0).normal(size=shape)))
    axes = figures.stage_curves(single, grouping=grouping, quantities=["anisotropy"]).axes[0]
    found = profile_by(single, grouping, variable="anisotropy", resample="prompt")
    drawn = sorted((path.vertices[:, 1].min(), path.vertices[:, 1].max()) for own in axes.collections
                   for path in own.get_paths())
    np.testing.assert_allclose(drawn, sorted(zip(found["low"].values.ravel(), found["high"].values.ravel(),
                                                 strict=True)))
    assert min(high - low for low, high in drawn) > 0.01


def test_the_rounding_of_a_loop_at_rest_is_one_colour():
    rest = np.ones((3, 2, 4, 6, 3)) + 1e-6 * np.random.default_rng(0).normal(size=(3, 2, 4, 6, 3))
    image = figures.depth_matrix(layer_cosine(orbits_of(rest))).axes[0].images[0]
    assert np.ptp(image.norm(image.get_array())) < 0.01


def test_a_mean_of_nothing_has_no_sign():
    matrix = layer_cosine(orbits_of(np.random.default_rng(0).normal(size=(2, 2, 3, 4, 3)))) * 0 - 1e-9
    assert "-0.00" not in caption_of(figures.depth_matrix(matrix.rename("layer_cosine")))
