"""Figures say what they show; the same numbers give the same bytes; what cannot be drawn is said or refused."""

import dataclasses
import importlib
import pkgutil
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import xarray
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynloop import Measurement, Outcome, Trajectories, estimate
from dynloop.analyzers import (
    contraction_rate,
    convergence_time,
    distance_to_limit,
    limit_regime,
    minimal_period,
    recurrence_quantification,
    successive_distance,
)
from dynloop.graph import cells
from dynloop.report import figures
from dynloop.report.figures import alt_of, caption_of, draw
from dynloop.report.figures.bands import median_interval, share_interval
from dynloop.report.figures.rows import Row, digits, text_of
from dynloop.report.figures.style import COLOURS, STYLE, groups_of, looks

PROMPTS, TOKENS, STEPS, DIM = 6, 4, 64, 8
ELSEWHERE = {"attention_settling", "depth_matrix", "mirroring_scores", "stage_curves", "stage_strips"}
# ELSEWHERE are drawn in test_stage_figures.py
NAMES = [name for name in figures.__all__ if name not in {"Drawing", "alt_of", "caption_of", "draw", *ELSEWHERE}]


def recording():
    """Two models, two layers: one falls to a floor, one goes round a cycle of five."""
    rng = np.random.default_rng(0)
    t = np.arange(STEPS)[:, None]
    cycle = rng.normal(size=(5, DIM))
    states, labels = [], {name: [] for name in ("model", "prompt", "token", "layer")}
    for model in ("settles", "turns"):
        for prompt in range(PROMPTS):
            for token in range(TOKENS):
                for layer in (1, 2):
                    limit = rng.normal(size=DIM)
                    if model == "settles":
                        rate = 0.6 + 0.03 * prompt
                        x = limit + rate**t * rng.normal(size=DIM) + 1e-6 * rng.normal(size=(STEPS, DIM))
                    else:
                        x = limit + cycle[t[:, 0] % 5] + 0.02 * rng.normal(size=(STEPS, DIM))
                    states.append(x)
                    for name, value in zip(labels, (model, prompt, token, layer), strict=True):
                        labels[name].append(value)
    return Trajectories(np.array(states), labels=labels)


@pytest.fixture(scope="module")
def orbits():
    return recording()


@pytest.fixture(scope="module")
def made(orbits):
    """Every figure by name: a function that makes it anew."""
    distance = distance_to_limit(orbits, metric="relative")
    step, rate = successive_distance(orbits, metric="relative"), contraction_rate(orbits)
    time, period, regime = convergence_time(orbits), minimal_period(orbits), limit_regime(orbits)
    settles = rate.select(model="settles")
    truth = np.where(orbits.labels["model"] == "settles", "fixed point", "orbit")
    calibration = dataclasses.replace(regime, labels={"truth": truth})
    angles = np.exp(2j * np.pi * np.arange(6) / 6)
    spectrum = Measurement("jacobian_spectrum", {
        "spectral_radius": np.full(2, 0.9), "eigenvalues_real": 0.9 * np.stack([angles.real] * 2),
        "eigenvalues_imag": 0.9 * np.stack([angles.imag] * 2), "residuals": np.full((2, 6), 0.1)}, [Outcome.FOUND] * 2)
    rng = np.random.default_rng(1)
    attention = xarray.Dataset(
        {name: (("row", "recurrence"), rng.uniform(0.1, 0.9, size=(12, 9))) for name in ("sink_score", "entropy")},
        coords={"layer": ("row", ["a", "b"] * 6), "prompt": ("row", np.arange(12) // 2),
                "recurrence": np.arange(1, 10)})
    shares = [estimate(rate.select(model="settles", layer=layer), statistic="median", resample="prompt")
              for layer in (1, 2)]
    one = orbits.select(model="turns", prompt=0, token=0, layer=2)
    return {
        "attention_curves": lambda: figures.attention_curves(attention),
        "calibration_panel": lambda: figures.calibration_panel(calibration, n_steps=STEPS),
        "convergence_times": lambda: figures.convergence_times(time, by="model"),
        "distance_curves": lambda: figures.distance_curves(distance.select(model="settles"), settles),
        "distance_map": lambda: figures.distance_map(distance.select(model="settles", prompt=0, layer=2)),
        "forest": lambda: figures.forest(shares),
        "multiplier_circle": lambda: figures.multiplier_circle(spectrum),
        "pca_path": lambda: figures.pca_path(one),
        "period_counts": lambda: figures.period_counts(period),
        "precision_floor": lambda: figures.precision_floor(settles, resolution=2.0**-52),
        "rates_by_layer": lambda: figures.rates_by_layer(settles, resample="prompt", n_resamples=200),
        "recurrence_plot": lambda: figures.recurrence_plot(one),
        "regime_shares": lambda: figures.regime_shares(regime, resample="prompt", n_resamples=200),
        "state_graph": lambda: figures.state_graph(cells(orbits[:1], together=False)),
        "seed_lines": lambda: figures.seed_lines(step, by="prompt"),
        "step_curves": lambda: figures.step_curves(step.select(model="settles")),
    }


@pytest.fixture(scope="module")
def drawings(made):
    """Figure and drawing by name, drawn when first asked for."""
    found = {}

    def drawn(name):
        if name not in found:
            figure = made[name]()
            found[name] = figure, draw(name, figure)
        return found[name]

    return drawn


def nothing_found(name, n=4, curve=0):
    """A measurement of orbits that are all too short."""
    variables = {
        "contraction_rate": ("rate", "rate_low", "rate_high", "floor", "relative_floor", "regime_length"),
        "distance_to_limit": ("distance",), "successive_distance": ("distance",), "convergence_time": ("time",),
        "minimal_period": ("period",), "limit_regime": ("regime",),
        "jacobian_spectrum": ("spectral_radius", "eigenvalues_real", "eigenvalues_imag")}[name]
    values = {v: np.full((n, curve) if curve and v != "spectral_radius" else n, "" if v == "regime" else np.nan)
              for v in variables}
    return Measurement(name, values, [Outcome.TOO_SHORT] * n, labels={"prompt": np.arange(n), "truth": ["x"] * n})


def words_in(figure):
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_function_is_made_here(name, made):
    assert name in made, f"{name} is exported, but the tests do not draw it"


def test_every_file_with_a_figure_exports_its_function():
    helpers = {"bands", "curves", "drawing", "rows", "style", "words"}
    files = {m.name for m in pkgutil.iter_modules(figures.__path__)} - helpers
    assert files | {"step_curves"} == set(NAMES) | ELSEWHERE
    for name in files:
        assert getattr(figures, name) is getattr(importlib.import_module(f"dynloop.report.figures.{name}"), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_matplotlibs_and_has_words_with_n(name, drawings):
    figure, drawing = drawings(name)
    assert isinstance(figure, Figure)
    assert (drawing.caption, drawing.alt) == (caption_of(figure), alt_of(figure))
    caption, alt = caption_of(figure), alt_of(figure)
    assert re.search(r"\bn = \d|\d (orbit|state|token)s?\b", caption), caption
    assert caption.endswith(".")
    assert len(alt) > 40
    assert alt.endswith(".")
    assert "nan" not in (caption + alt).lower().split()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_give_the_same_bytes(name, made, drawings):
    one, other = drawings(name)[1], draw(name, made[name]())
    assert (one.svg, one.png, one.pdf) == (other.svg, other.png, other.pdf)
    assert (one.caption, one.alt) == (other.caption, other.alt)
    assert one.png.startswith(b"\x89PNG")
    assert one.pdf.startswith(b"%PDF")
    assert b"CreationDate" not in one.pdf


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_well_formed_and_its_ids_and_words_are_its_own(name, drawings):
    drawing = drawings(name)[1]
    root = ElementTree.fromstring(drawing.svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(i.startswith(f"{name}-") for i in ids)
    targets = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', drawing.svg)
    assert set(targets) <= set(ids)
    assert root.get("role") == "img"
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == drawing.alt
    assert root.find(f"{space}desc").text == drawing.caption


@pytest.mark.parametrize("name", NAMES)
def test_no_text_leaves_its_figure(name, made):
    figure = made[name]()
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        canvas.draw()
    whole = figure.bbox.padded(1)
    texts = [text for axes in figure.axes for text in [*axes.texts, axes.xaxis.label, axes.yaxis.label]]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        for axis, view in ((axes.xaxis, axes.viewLim.intervalx), (axes.yaxis, axes.viewLim.intervaly)):
            texts += [tick.label1 for tick in axis.get_major_ticks() if min(view) <= tick.get_loc() <= max(view)]
    assert len(texts) > 2
    for text in filter(lambda text: text.get_visible() and text.get_text(), texts):
        box = text.get_window_extent(canvas.get_renderer())
        assert whole.containsx(box.x0), text
        assert whole.containsx(box.x1), text
        assert whole.containsy(box.y0), text
        assert whole.containsy(box.y1), text


EMPTY = {
    "attention_curves": (lambda: figures.attention_curves(xarray.Dataset()), "no attention statistics to draw"),
    "calibration_panel": (lambda: figures.calibration_panel(nothing_found("limit_regime")),
                          "no planted systems to draw"),
    "convergence_times": (lambda: figures.convergence_times(nothing_found("convergence_time")),
                          "no convergence times to draw"),
    "distance_curves": (lambda: figures.distance_curves(nothing_found("distance_to_limit", curve=5)),
                        "no distance to draw"),
    "distance_map": (lambda: figures.distance_map(nothing_found("distance_to_limit", curve=5)), "no distance to draw"),
    "forest": (lambda: figures.forest([]), "no estimates to draw"),
    "multiplier_circle": (lambda: figures.multiplier_circle(nothing_found("jacobian_spectrum", curve=3)),
                          "no multipliers to draw"),
    "pca_path": (lambda: figures.pca_path(Trajectories(np.ones((1, 9, 3)))), "does not move in two dimensions"),
    "period_counts": (lambda: figures.period_counts(nothing_found("minimal_period", n=0)), "no periods to draw"),
    "precision_floor": (lambda: figures.precision_floor(nothing_found("contraction_rate")), "no floors to draw"),
    "rates_by_layer": (lambda: figures.rates_by_layer(nothing_found("contraction_rate"), resample="prompt"),
                       "no rates to draw"),
    "recurrence_plot": (lambda: figures.recurrence_plot(Trajectories(np.ones((1, 1, 3)))), "no recurrences to draw"),
    "regime_shares": (lambda: figures.regime_shares([]), "no regimes to draw"),
    "seed_lines": (lambda: figures.seed_lines(nothing_found("successive_distance", curve=5), by="prompt"),
                   "no curves to draw"),
    "state_graph": (lambda: figures.state_graph([]), "no orbits to draw"),
    "step_curves": (lambda: figures.step_curves(nothing_found("successive_distance", curve=5)), "no steps to draw"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_empty_is_said_in_the_figure_and_in_its_words(name):
    make, words = EMPTY[name]
    figure = make()
    assert words in words_in(figure)
    assert words.split()[-1] in alt_of(figure) or "not move" in alt_of(figure)
    assert draw(name, figure).svg


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("forest",)])
def test_something_else_than_a_measurement_is_refused_with_what_came_and_what_to_do(name):
    with pytest.raises(TypeError, match=r"got (ndarray|int)"):
        getattr(figures, name)(np.ones(3) if name not in ("rates_by_layer", "regime_shares") else [3])


def test_a_forest_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"value, low and high; got float"):
        figures.forest([0.3])


def test_measurements_of_another_kind_are_refused(orbits):
    rate, distance = contraction_rate(orbits[:4]), distance_to_limit(orbits[:4], metric="relative")
    with pytest.raises(ValueError, match=r"one value an orbit, and one value a step is needed"):
        figures.distance_curves(rate)
    with pytest.raises(ValueError, match=r"has no variable 'relative_floor'"):
        figures.precision_floor(distance)
    with pytest.raises(ValueError, match=r"one value a step, and one value an orbit is needed"):
        figures.regime_shares(distance, resample="prompt")
    with pytest.raises(ValueError, match=r"no label 'seed' tells seeds apart"):
        figures.seed_lines(distance)
    with pytest.raises(ValueError, match=r"no label 'colour' to group by"):
        figures.step_curves(successive_distance(orbits[:4]), by="colour")
    with pytest.raises(ValueError, match=r"label whose values are independent.*got 'seed'"):
        figures.step_curves(successive_distance(orbits[:4]), resample="seed")
    with pytest.raises(ValueError, match=r"resample must say what is independent"):
        figures.rates_by_layer(rate)
    with pytest.raises(ValueError, match=r"one orbit; got 4"):
        figures.pca_path(orbits[:4])
    with pytest.raises(ValueError, match=r"label 'truth'"):
        figures.calibration_panel(limit_regime(orbits[:4]))
    with pytest.raises(ValueError, match=r"no statistic 'nonsense'"):
        figures.attention_curves(xarray.Dataset({"a": (("row", "recurrence"), np.ones((2, 3)))},
                                                coords={"layer": ("row", [1, 2])}), variables=["nonsense"])


@pytest.mark.parametrize("level", [0, 1, -0.5, "much", True])
def test_levels_that_are_none_are_refused(orbits, level):
    step = successive_distance(orbits[:4])
    for make in (lambda: figures.step_curves(step, confidence_level=level),
                 lambda: figures.seed_lines(step, by="prompt", confidence_level=level),
                 lambda: figures.convergence_times(convergence_time(orbits[:4]), confidence_level=level)):
        with pytest.raises((ValueError, TypeError), match=r"confidence_level"):
            make()


def test_a_name_that_is_no_id_is_refused(made):
    with pytest.raises(ValueError, match=r"letters, digits, - and _; got 'a b'"):
        draw("a b", made["forest"]())


def test_a_figure_of_somebody_else_needs_words():
    figure = Figure()
    with pytest.raises(ValueError, match=r"Pass caption= and alt="):
        draw("own", figure)
    assert draw("own", figure, caption="A & <b>.", alt="An alt.").svg.count("A &amp; &lt;b&gt;.") == 1


def test_the_caption_of_curves_tells_quantiles_from_the_interval(made):
    caption = caption_of(made["distance_curves"]())
    assert "48 orbits of 6 prompts" in caption
    assert "the middle 90 % of orbits (their spread, no interval)" in caption
    assert "pointwise 95 % interval of the median over 6 prompts (Woodruff)" in caption
    assert "t with 5 degrees of freedom" in caption
    assert "tolerance=0.001" in caption
    assert "64 recurrences" in caption


def test_a_curve_without_units_says_that_it_has_no_interval(orbits):
    caption = caption_of(figures.step_curves(successive_distance(orbits), resample=None))
    assert "no interval is drawn" in caption


def test_a_figure_of_estimates_holds_their_numbers_and_their_kind(orbits):
    rate = contraction_rate(orbits).select(model="settles")
    found = [estimate(rate.select(layer=layer), statistic="median", resample="prompt") for layer in (1, 2)]
    for figure in (figures.rates_by_layer(found), figures.forest(found)):
        for e in found:
            assert f"{digits(e.value)} [{digits(e.low)}, {digits(e.high)}]" in words_in(figure)
        assert f"95 % {found[0].method}" in caption_of(figure)
        assert "6 prompts" in caption_of(figure)


def test_a_figure_of_a_measurement_has_the_numbers_of_estimate(orbits):
    regime = limit_regime(orbits)
    figure = figures.regime_shares(regime, resample="prompt")
    for model in ("settles", "turns"):
        e = estimate(regime.select(model=model), statistic="share", of="orbit", resample="prompt", n_resamples=1000)
        assert f"{digits(e.value, 100)} [{digits(e.low, 100)}, {digits(e.high, 100)}]" in words_in(figure)


def test_regimes_that_never_occur_stand_in_the_caption_with_their_limit(orbits):
    caption = caption_of(figures.regime_shares(limit_regime(orbits), resample="prompt"))
    assert re.search(r"Never seen: .*chaotic \(at most \d", caption)


def test_with_one_prompt_shares_have_no_interval_and_say_so(orbits):
    figure = figures.regime_shares(limit_regime(orbits.select(prompt=0, model="turns")), resample="prompt")
    assert "without an interval" in caption_of(figure)
    assert "[" not in words_in(figure)


@dataclasses.dataclass
class Contrast:
    name: str
    statistic: str
    condition: str
    baseline: str
    difference: str
    value: float
    low: float
    high: float
    n: dict
    confidence_level: float = 0.95
    method: str = "t"
    resample: str = "prompt"
    unit: str = ""


def test_contrasts_are_named_and_have_their_line(orbits):
    counts = {"a": {"prompt": 6, "orbit": 24}, "b": {"prompt": 6, "orbit": 20}}
    figure = figures.forest([Contrast("rate", "mean", "b", "a", "ratio", 1.2, 1.1, 1.3, counts),
                             Contrast("rate", "mean", "c", "a", "ratio", 0.9, 0.8, 1.3, counts)])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b / a", "c / a"]
    assert "Dashed line: 1." in caption_of(figure)
    assert "a: 6 prompts, 24 orbits; b: 6 prompts, 20 orbits" in caption_of(figure)
    assert figure.axes[0].get_xlabel() == "ratio of the means"


def test_a_log_axis_refuses_what_it_has_no_place_for():
    contrast = Contrast("rate", "mean", "b", "a", "difference", -0.2, -0.3, 0.1, {})
    with pytest.raises(ValueError, match=r"log axis needs positive values; got -0.2"):
        figures.forest([contrast], log=True)
    with pytest.raises(ValueError, match=r"labels must be one for each of 1 estimates; got 2"):
        figures.forest([contrast], labels=["a", "b"])


def test_all_rows_stand_even_where_names_repeat():
    e = Contrast("rate", "mean", "b", "a", "difference", 0.2, 0.1, 0.3, {})
    figure = figures.forest([e, e], labels=["x", "x"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x", "x (2)"]


def test_calibration_counts_power_and_false_alarms_by_hand():
    truth = ["orbit"] * 10 + ["fixed point"] * 20 + ["noise"] * 10
    called = ["orbit"] * 8 + ["undetermined"] * 2 + ["fixed point"] * 20 + ["orbit"] * 3 + ["undetermined"] * 7
    m = Measurement("limit_regime", {"regime": np.array(called)}, [Outcome.FOUND] * 40, labels={"truth": truth},
                    categories={"regime": ("fixed point", "orbit", "slider", "undetermined")})
    figure = figures.calibration_panel(m)
    power, alarms = (" ".join(t.get_text() for t in axes.texts) for axes in figure.axes)
    assert "80.0 [44.4, 97.5]" in power  # Clopper-Pearson of 8 of 10
    assert "10.0 [2.11, 26.5]" in alarms  # of 3 of 30
    assert "Called undetermined, which is no alarm: 22.5 %" in caption_of(figure)
    assert "fixed point 20, noise 10, orbit 10" in caption_of(figure)


def test_calibration_takes_counts_that_were_made_before():
    counts = {"orbit": (8, 10, 3, 30), "slider": (0, 0, 0, 40), "undetermined": (0, 0, 9, 40)}
    figure = figures.calibration_panel(counts, n_steps=64)
    power, alarms = (" ".join(t.get_text() for t in axes.texts) for axes in figure.axes)
    assert power == "80.0 [44.4, 97.5] not planted"
    assert alarms.startswith("10.0 [2.11, 26.5] 0 [0, ")
    assert "of 64 recurrences" in caption_of(figure)
    assert "95 % Clopper-Pearson over orbits" in caption_of(figure)
    with pytest.raises(ValueError, match=r"counts of 'orbit' must be .* got \(3, 2, 0, 0\)"):
        figures.calibration_panel({"orbit": (3, 2, 0, 0)})


def test_orbits_that_never_arrive_keep_the_line_below_one():
    time = np.array([2.0, 4.0, np.nan, np.nan])
    m = Measurement("convergence_time", {"time": time, "n_recorded": np.full(4, 20.0)},
                    [Outcome.FOUND] * 2 + [Outcome.NOT_CONVERGED] * 2, labels={"prompt": [0, 1, 2, 3]})
    line = figures.convergence_times(m).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), np.where(line.get_xdata() <= 2, 0, np.where(
        line.get_xdata() <= 4, 0.25, 0.5)))
    assert len(line.get_xdata()) == 20


def test_the_recurrence_plot_counts_like_the_analyzer(orbits):
    one = orbits.select(model="turns", prompt=0, token=0, layer=2)
    rate = float(recurrence_quantification(one)["recurrence_rate"][0])
    assert f"{100 * rate:.3g} % of the pairs" in caption_of(figures.recurrence_plot(one))


def test_seed_lines_have_the_t_interval_of_the_geometric_mean():
    from scipy import stats

    values = np.exp(np.random.default_rng(0).normal(size=(5, 1, 7)) + np.zeros((5, 3, 7)))
    m = Measurement("d", {"d": values.reshape(15, 7)}, [Outcome.FOUND] * 15, labels={"seed": np.repeat(range(5), 3)})
    band = figures.seed_lines(m).axes[0].collections[0].get_paths()[0].vertices
    low, high = stats.t.interval(0.95, 4, np.log(values[:, 0, 0]).mean(), stats.sem(np.log(values[:, 0, 0])))
    at_first = band[band[:, 0] == 1, 1]
    assert at_first.min() == pytest.approx(np.exp(low))
    assert at_first.max() == pytest.approx(np.exp(high))


def test_the_error_of_a_multiplier_is_drawn_where_it_can_be_seen(made):
    circles = [p for p in made["multiplier_circle"]().axes[0].patches if p.get_radius() != 1]
    assert len(circles) == 12
    assert circles[0].get_radius() == pytest.approx(0.09)


def test_many_points_are_pixels_in_a_vector_figure():
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (600, 10))
    m = Measurement("jacobian_spectrum", {"spectral_radius": np.ones(600), "eigenvalues_real": np.cos(angles),
                                          "eigenvalues_imag": np.sin(angles)}, [Outcome.FOUND] * 600)
    drawing = draw("many", figures.multiplier_circle(m))
    assert "data:image/png" in drawing.svg
    assert len(drawing.svg) < 300_000


def test_no_two_of_many_groups_look_the_same():
    first = [look for look, _ in zip(looks(), range(28), strict=False)]
    assert len({(look["color"], look["linestyle"]) for look in first}) == 28
    assert len(set(COLOURS)) == 7


def test_of_many_groups_eight_are_drawn_the_first_and_the_last_among_them():
    groups = groups_of({"layer": np.arange(40)}, 40, "layer", "layer")
    assert len(groups) == 8
    assert groups[0][0] == "layer 0"
    assert groups[-1][0] == "layer 39"


def test_digits_of_tiny_shares_are_no_string_of_noughts():
    assert text_of(Row("a", 0.01, 6e-9, 0.2), 100) == "1.00 [<0.001, 20.0]"
    assert text_of(Row("a", float("nan"), 0, 0, kind="not planted")) == "not planted"


# ---- intervals along a curve

def nested(rng, replications, units, size, between):
    """Replications in columns, (units * size, replications), and the unit of every row."""
    of_unit = np.repeat(rng.normal(scale=between, size=(units, replications)), size, axis=0)
    return of_unit + rng.normal(size=(units * size, replications)), np.repeat(np.arange(units), size)


@pytest.mark.parametrize("units", [6, 40])
def test_the_interval_of_a_median_covers_as_often_as_it_says(units):
    values, unit = nested(np.random.default_rng(units), 4000, units, 20, 0.7)
    low, high = median_interval(values, unit, 0.95)
    assert 0.93 < ((low <= 0) & (high >= 0)).mean() < 0.98


def test_the_interval_of_a_median_leaves_out_what_is_no_number():
    values, unit = nested(np.random.default_rng(0), 3, 10, 8, 0.5)
    holes = np.vstack([values, np.full((10, 3), np.nan)])
    more = np.append(unit, np.arange(10))
    for one, other in zip(median_interval(values, unit, 0.9), median_interval(holes, more, 0.9), strict=True):
        np.testing.assert_allclose(one, other)
    assert np.isnan(median_interval(values, np.zeros(80), 0.95)).all()


def test_the_interval_of_a_share_covers_at_least_as_often_as_it_says():
    values, unit = nested(np.random.default_rng(3), 1000, 30, 20, 0.5)
    truth = 0.1586552539314571  # of a normal variable above its standard deviation
    events = values > np.sqrt(1.25)
    low, high = np.array([share_interval(events[:, [i]], unit, 0.95) for i in range(1000)])[:, :, 0].T
    assert ((low <= truth) & (high >= truth)).mean() > 0.94


def test_a_share_that_never_occurs_has_the_limit_of_as_many_units():
    from scipy import stats

    low, high = share_interval(np.zeros((60, 1), bool), np.repeat(np.arange(12), 5), 0.95)
    assert low[0] == 0
    assert high[0] == pytest.approx(stats.binomtest(0, 12).proportion_ci(0.95).high)


def test_independent_orbits_have_the_exact_interval():
    from scipy import stats

    events = np.arange(50) < 7
    low, high = share_interval(events[:, None], np.arange(50), 0.95)
    exact = stats.binomtest(7, 50).proportion_ci(0.95)
    assert (low[0], high[0]) == (pytest.approx(exact.low), pytest.approx(exact.high))
