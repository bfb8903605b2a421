"""A study gives back what it was made of, from memory and from its file, and refuses what it cannot keep."""

import functools
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import h5netcdf
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dynloop
from dynloop import Measurement, Outcome, measure
from dynloop.study import Study


def assert_same(got, wanted):
    """Equal in every bit and in every type."""
    assert (got.name, dict(got.units)) == (wanted.name, dict(wanted.units))
    assert repr(dict(got.settings)) == repr(dict(wanted.settings))
    assert dict(got.categories) == dict(wanted.categories)
    assert got.outcomes.tolist() == wanted.outcomes.tolist()
    for what in ("variables", "labels"):
        ours, theirs = getattr(got, what), getattr(wanted, what)
        assert list(ours) == list(theirs)
        for name, values in theirs.items():
            assert (ours[name].dtype, ours[name].shape) == (values.dtype, values.shape), name
            if values.dtype == object:
                assert ours[name].tolist() == values.tolist(), name
            else:
                assert ours[name].tobytes() == values.tobytes(), name


def crossed(n_prompts=3, n_layers=2, n_tokens=4, *, order=None, name="rate", **labels):
    """A measurement of every prompt, layer and token; `order` shuffles the orbits."""
    of = np.array(list(itertools.product(range(n_prompts), range(n_layers), range(n_tokens))))
    of = of if order is None else of[order]
    n = len(of)
    return Measurement(name, {"rate": np.arange(n) / 7, "curve": np.arange(5 * n).reshape(n, 5) * 1.0},
                       [Outcome.FOUND if i % 5 else Outcome.TOO_SHORT for i in range(n)],
                       units={"rate": "per recurrence"}, settings={"metric": "cosine", "window": (0, 4), "cut": None},
                       labels={"model": np.full(n, "nano"), "prompt": of[:, 0], "layer": of[:, 1], "token": of[:, 2],
                               "kind": np.array(["code", "prose", "code"])[of[:, 0] % 3], **labels})


SAFE = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=8)
NAMES = st.one_of(st.sampled_from(["orbit", "step", "place", "prompt", "layer", "a/b", " x ", ".", "100%", "%2F"]),
                  SAFE.filter(bool))
DTYPES = st.one_of(hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(),
                   hnp.boolean_dtypes())
SETTING = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), SAFE),
                       lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
                                               st.dictionaries(SAFE, inner, max_size=2)), max_leaves=4)


@st.composite
def arrays(draw, n, *, curves=False):
    shape = (n, draw(st.integers(0, 3))) if curves and draw(st.booleans()) else (n,)
    kind = draw(st.sampled_from(["numbers", "texts", "objects"]))
    if kind == "numbers":
        return draw(hnp.arrays(draw(DTYPES), shape))
    texts = np.array(draw(st.lists(SAFE, min_size=n, max_size=n)), dtype=object)
    return texts if kind == "objects" else texts.astype(str)


@st.composite
def measurements(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    n_variables = draw(st.integers(1, len(names)))
    sizes = draw(st.lists(st.integers(1, 4), max_size=3))
    n = int(np.prod(sizes)) if sizes else draw(st.integers(0, 5))
    variables = {name: draw(arrays(n, curves=True)) for name in names[:n_variables]}
    labels = {name: draw(arrays(n)) for name in names[n_variables:]}
    cells = np.array(list(itertools.product(*map(range, sizes)))).reshape(n, -1) if sizes else np.zeros((n, 0))
    cells = cells[draw(st.permutations(range(n)))] if sizes and draw(st.booleans()) else cells
    labels |= {f"dim {i}": cells[:, i].astype(draw(st.sampled_from([np.int64, np.float32, "U3"])))
               for i in range(cells.shape[1])}
    return Measurement(draw(NAMES), variables, draw(st.lists(st.sampled_from(Outcome), min_size=n, max_size=n)),
                       units={name: draw(SAFE) for name in variables},
                       settings=draw(st.dictionaries(SAFE, SETTING, max_size=3)), labels=labels,
                       categories={names[0]: tuple(draw(st.lists(SAFE, max_size=3)))})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(runs=st.dictionaries(NAMES, st.lists(measurements(), max_size=2), min_size=1, max_size=2),
       provenance=st.dictionaries(SAFE, SETTING, max_size=3))
def test_a_study_gives_back_what_it_was_made_of(runs, provenance, tmp_path_factory):
    try:
        study = Study.of(runs, provenance={next(iter(runs)): provenance})
    except ValueError as refused:
        assert "is the name of two things" in str(refused)  # noqa: PT017
        return
    folder = tmp_path_factory.mktemp("study")
    loaded = Study.load(study.save(folder / "study.nc"))
    for made in (study, loaded):
        assert made.runs == tuple(runs)
        assert repr(made.provenance(made.runs[0])) == repr(provenance)
        for run, own in runs.items():
            for got, wanted in zip(made.measurements(run), own, strict=True):
                assert_same(got, wanted)
    loaded.save(folder / "again.nc")
    assert (folder / "again.nc").read_bytes() == (folder / "study.nc").read_bytes()


@pytest.mark.parametrize("order", [None, np.random.default_rng(1).permutation(24)], ids=["in order", "shuffled"])
def test_a_full_product_of_labels_becomes_dimensions(order):
    measurement = crossed(order=order)
    data = Study.of({"a": [measurement]}).tree["a/rate"].dataset
    assert set(data["rate"].dims) == {"prompt", "layer", "token"}
    assert data["curve"].dims[-1] == "step"
    assert (data["kind"].dims, data["model"].dims) == (("prompt",), ())
    for i in (0, 7, 23):
        at = {name: measurement.labels[name][i] for name in ("prompt", "layer", "token")}
        assert float(data["rate"].sel(at)) == measurement.values[i]
        assert str(data["outcome"].sel(at).values) == measurement.outcomes[i].value
        assert str(data["kind"].sel(prompt=at["prompt"]).values) == measurement.labels["kind"][i]


def test_orbits_that_are_no_full_product_lie_along_one_dimension():
    measurement = crossed(order=np.arange(23))
    data = Study.of({"a": [measurement]}).tree["a/rate"].dataset
    assert data["rate"].dims == ("orbit",)
    assert data["token"].values.tolist() == measurement.labels["token"].tolist()


def test_means_over_dimensions_are_means_over_rows():
    measurement = crossed(order=np.random.default_rng(2).permutation(24))
    means = Study.of({"a": [measurement]}).tree["a/rate"]["rate"].mean(["layer", "token"])
    for prompt in range(3):
        rows = measurement.labels["prompt"] == prompt
        assert float(means.sel(prompt=prompt)) == pytest.approx(measurement.values[rows].mean(), rel=1e-12)


def test_every_analyzer_can_be_kept(decaying, tmp_path):
    analyzers = [getattr(dynloop, name) for name in
                 ("successive_distance", "distance_to_limit", "contraction_rate", "limit_regime",
                  "limit_regime_blayney", "minimal_period", "turning_angle", "path_straightness",
                  "recurrence_quantification", "convergence_time", "dominant_modes", "chaos_01", "lyapunov_from_data")]
    found = measure(decaying, [*analyzers, functools.partial(dynloop.contraction_rate, min_points=7)])
    study = Study.load(Study.of({"decay": found}).save(tmp_path / "study.nc"))
    for got, wanted in zip(study.measurements("decay"), found, strict=True):
        assert_same(got, wanted)
    assert list(study.tree["decay"].children)[-1] == "contraction_rate (2)"


def test_the_frame_of_all_runs_is_the_frames_of_each_run(tmp_path):
    one, two = crossed(), crossed(order=np.arange(20))
    study = Study.load(Study.of({"a": [one], "b/c": [two, crossed(name="other")]}).save(tmp_path / "s.nc"))
    frame = study.to_frame("rate")
    assert frame.columns[0] == "run"
    assert frame["run"].tolist() == ["a"] * 120 + ["b/c"] * 100
    pd.testing.assert_frame_equal(frame.iloc[120:, 1:].reset_index(drop=True), two.to_frame())
    assert set(study.to_frame("other")["run"]) == {"b/c"}


def test_the_same_study_gives_the_same_bytes(tmp_path):
    first, second = (Study.of({"a": [crossed()], "b": [crossed()]}, provenance={"a": {"seed": 3}}).save(tmp_path / name)
                     for name in ("one.nc", "two.nc"))
    assert first.read_bytes() == second.read_bytes()


def test_the_file_is_plain_netcdf(tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert tree.attrs["format"] == "dynloop study"
        assert tree.attrs["version"] == "1.0"
        data = tree["a/rate"].dataset
        assert float(data["rate"].sel(prompt=1, layer=1, token=2)) == 14 / 7
        table = data["outcome%texts"].values
        assert table[data["outcome"].sel(prompt=0, layer=0, token=0).values] == "too short"


def test_a_table_of_164000_rows_takes_few_bytes(tmp_path):
    rng, n = np.random.default_rng(0), 5 * 64 * 128 * 4
    of = np.indices((5, 64, 128, 4)).reshape(4, -1)
    variables = {f"v{i}": rng.normal(size=n).astype(np.float32) for i in range(10)}
    variables["regime"] = np.array(["fixed point", "orbit", "slider"])[rng.integers(3, size=n)]
    measurement = Measurement("all", variables, [Outcome.FOUND] * n,
                              labels=dict(zip(("seed", "prompt", "token", "layer"), of, strict=True)))
    path = Study.of({"run": [measurement]}).save(tmp_path / "study.nc")
    assert path.stat().st_size < 7e6
    assert_same(Study.load(path).measurements("run")[0], measurement)


def test_a_study_replaces_a_study_and_nothing_else(tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    Study.of({"b": [crossed()]}).save(path)
    assert Study.load(path).runs == ("b",)
    for name, content in (("notes.txt", b"mine"), ("empty.nc", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileExistsError, match="is there already and is no study"):
            Study.of({"a": [crossed()]}).save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    with h5netcdf.File(tmp_path / "other.nc", "w") as file:
        file.attrs["title"] = "weather"
    with pytest.raises(FileExistsError, match="is no study"):
        Study.of({"a": [crossed()]}).save(tmp_path / "other.nc")
    with pytest.raises(ValueError, match="is not a study: it has no root attribute"):
        Study.load(tmp_path / "other.nc")


def test_what_cannot_be_written_leaves_the_old_study(tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    before = path.read_bytes()
    for text, words in (("a\x00b", "a text with a NUL character"), ("a\ud800", r"'a\\ud800', which is no Unicode")):
        with pytest.raises(ValueError, match=f"'note' holds {words}"):
            Study.of({"a": [crossed(note=np.array([text] * 23 + ["b"]))]}).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["study.nc"]
    assert path.read_bytes() == before


def test_threads_may_save_to_one_path_at_a_time(tmp_path):
    studies = [Study.of({f"run {i}": [crossed()]}) for i in range(3)]
    path = studies[0].save(tmp_path / "study.nc")

    def save_and_load(i):
        for _ in range(6):
            studies[i].save(path)
            assert len(Study.load(path).runs) == 1

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(save_and_load, i) for i in range(3)]:
            future.result()
    assert [p.name for p in tmp_path.iterdir()] == ["study.nc"]


@pytest.mark.parametrize(("version", "words"), [("2.0", r"has study version 2.0, and this dynloop .* reads versions "
                                                        r"1.x. Update dynloop"), ("x", "damaged: its version is 'x'")])
def test_newer_majors_are_refused_with_a_sentence(version, words, tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    with h5netcdf.File(path, "a") as file:
        file.attrs["version"] = version
    with pytest.raises(ValueError, match=words):
        Study.load(path)


def test_a_newer_minor_is_read(tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    with h5netcdf.File(path, "a") as file:
        file.attrs["version"] = "1.9"
    assert_same(Study.load(path).measurements("a")[0], crossed())


def test_a_changed_value_is_found(tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    with h5netcdf.File(path, "a") as file:
        file["a/rate/rate"][0, 0, 1] = 0.5
    with pytest.raises(ValueError, match="do not have the checksum"):
        Study.load(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_named(share, tmp_path):
    path = Study.of({"a": [crossed()]}).save(tmp_path / "study.nc")
    raw = path.read_bytes()
    path.write_bytes(raw[:int(share * len(raw))])
    with pytest.raises(ValueError, match=r"study\.nc cannot be read as a study: .*Is it whole"):
        Study.load(path)


def test_a_flipped_byte_never_gives_other_values(tmp_path):
    wanted = crossed()
    path = Study.of({"a": [wanted]}).save(tmp_path / "study.nc")
    raw, refused = path.read_bytes(), 0
    for at in np.random.default_rng(5).integers(len(raw), size=60):
        changed = bytearray(raw)
        changed[at] ^= 0x40
        path.write_bytes(changed)
        try:
            loaded = Study.load(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert_same(loaded.measurements("a")[0], wanted)
    assert refused > 5


def test_what_is_missing_or_no_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no study at .*Name a file that Study.save wrote"):
        Study.load(tmp_path / "nothing.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot be read as a study"):
        Study.load(tmp_path / "text.nc")


@pytest.mark.parametrize(("value", "words"), [({1, 2}, "of set"), (np.arange(3), "of ndarray"), (print, "of builtin")])
def test_settings_that_cannot_be_kept_are_named(value, words):
    measurement = Measurement("rate", {"rate": np.ones(1)}, [Outcome.FOUND], settings={"thing": value})
    with pytest.raises(TypeError, match=f"the settings of 'rate' holds .*{words}.*which a study cannot keep"):
        Study.of({"a": [measurement]})
    with pytest.raises(TypeError, match="the provenance of 'a' holds"):
        Study.of({"a": [crossed()]}, provenance={"a": {"thing": value}})


def test_numbers_of_numpy_are_kept_as_numbers():
    measurement = Measurement("rate", {"rate": np.ones(1)}, [Outcome.FOUND],
                              settings={"a": np.float64(0.5), "b": np.int64(3), "c": np.bool_(True)})
    assert dict(Study.of({"a": [measurement]}).measurements("a")[0].settings) == {"a": 0.5, "b": 3, "c": True}


@pytest.mark.parametrize("values", [np.ones(24, dtype=complex), np.zeros(24, dtype="M8[s]"),
                                    np.array([None] * 24, dtype=object)], ids=["complex", "times", "objects"])
def test_values_that_cannot_be_kept_are_named(values):
    with pytest.raises(TypeError, match=r"'odd' of 'rate' holds .*which a study cannot keep"):
        Study.of({"a": [crossed(odd=values)]})


@pytest.mark.parametrize("name", ["outcome", "rate", "step", "place"])
def test_names_that_mean_two_things_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} of rate is the name of two things"):
        Study.of({"a": [crossed(**{name: np.arange(24)})]})


def test_what_a_study_is_made_of_is_checked():
    for wrong in ({}, None, [crossed()]):
        with pytest.raises(TypeError, match="a study is made of"):
            Study.of(wrong)
    with pytest.raises(TypeError, match="run 'a' must hold measurements; got int"):
        Study.of({"a": [3]})
    with pytest.raises(TypeError, match="a run is called by a text; got 3"):
        Study.of({3: [crossed()]})
    with pytest.raises(ValueError, match="provenance is given for b, which is no run"):
        Study.of({"a": [crossed()]}, provenance={"b": {}})
    with pytest.raises(ValueError, match="this is no tree of a study"):
        Study(xr.DataTree())


def test_what_is_not_in_a_study_is_said():
    study = Study.of({"a": [crossed()], "b": [crossed(run=np.arange(24))]})
    for ask in (study.measurements, study.provenance):
        with pytest.raises(KeyError, match="no run 'c'; this study has a, b"):
            ask("c")
    with pytest.raises(KeyError, match="no run has a measurement 'speed'; there are rate"):
        study.to_frame("speed")
    with pytest.raises(ValueError, match="rate of 'b' has a label or variable 'run'"):
        study.to_frame("rate")


def test_runs_measured_with_other_settings_are_not_mixed_in_a_frame():
    other = Measurement("rate", {"rate": np.ones(2)}, [Outcome.FOUND] * 2, settings={"metric": "euclidean"})
    with pytest.raises(ValueError, match=r"rate of 'a' and of 'b' differ in their settings"):
        Study.of({"a": [crossed()], "b": [other]}).to_frame("rate")


def test_the_values_of_a_study_cannot_be_changed(tmp_path):
    study = Study.of({"a": [crossed()]})
    for made in (study, Study.load(study.save(tmp_path / "s.nc"))):
        with pytest.raises(ValueError, match="read-only"):
            made.tree["a/rate"]["rate"].values[0] = 3.0
    with pytest.raises(AttributeError):
        study.tree = None


def test_settings_lie_readable_in_the_tree():
    about = Study.of({"a": [crossed()]}).tree["a/rate"].attrs
    assert json.loads(about["settings"])["metric"] == "cosine"
    assert about["analyzer"] == "rate"
