"""The report's numbers are the recording's numbers, in every format; the page needs nothing but itself."""

import csv
import dataclasses
import functools
import html.parser
import json
import re

import numpy as np
import pytest
import torch

from dynloop import Outcome, Trajectories, capture, load, measure, open_store, save
from dynloop.analyzers import (
    contraction_rate,
    convergence_time,
    distance_to_limit,
    limit_regime,
    limit_regime_blayney,
    minimal_period,
)
from dynloop.nano import shipped_prompts
from dynloop.report import Report, build_report

MODELS = ("nano-settles", "nano-random-start", "nano-drifts")
TOKENS = range(7, 64, 14)
PROMPTS, STEPS = 12, 128
N = PROMPTS * len(TOKENS)  # orbits of a layer
INTERVAL = re.compile(r"([\d.e+-]+) \[([\d.e+-]+), ([\d.e+-]+)\]")


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    """One thread: small products lose more to the barrier than they gain, tenfold on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [capture(name, shipped_prompts()[:PROMPTS], out=root / name, n_recurrences=STEPS, tokens=TOKENS)
            for name in MODELS]


@pytest.fixture(scope="module")
def report(stores):
    return build_report(stores)


@pytest.fixture(scope="module")
def measured(stores):
    """(model, analyzer) -> its measurement of the whole recording, made once, apart from the report's."""
    @functools.cache
    def ask(name, analyzer):
        return measure(stores[MODELS.index(name)], [analyzer])[0]
    return ask


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    return report.save(tmp_path_factory.mktemp("report") / "r").parent


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


class Page(html.parser.HTMLParser):
    """What a reader and a screen reader find on the page, and that every element is closed where it should be."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.texts, self.heads = [], [], [], [], [], []
        self.tables, self.images, self.unlabelled = [], [], 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append("")
            self.heads += [attributes.get("scope")] if tag == "th" else []
        if tag == "svg":
            assert attributes["role"] == "img"
            self.images.append("")
        if tag not in self.VOID:
            self.open.append((tag, attributes))
        self.note(attributes)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.note(dict(attributes))

    def note(self, attributes):
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [(name, value) for name, value in attributes.items()
                       if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")]

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append(data)
        inside = [tag for tag, _ in self.open]
        if inside[-2:] == ["svg", "title"]:
            self.images[-1] += data
        if inside[-1:] == ["caption"]:
            self.tables[-1]["caption"] += data
        if inside[-1:] in (["td"], ["th"]):
            self.tables[-1]["rows"][-1][-1] += data


def markdown_tables(text):
    tables, caption = [], None
    for line in text.splitlines():
        if line.startswith("**"):
            caption = line.strip("*")
            tables.append({"caption": unescaped(caption), "rows": []})
        elif line.startswith("| "):
            cells = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
            if not all(set(cell) <= set("-:") and cell for cell in cells):
                tables[-1]["rows"].append([unescaped(cell) for cell in cells])
    return tables


def unescaped(text):
    return re.sub(r"\\([^\w\s])", r"\1", text)


def latex_table(text):
    """Caption and cells of a LaTeX table, as a reader of the paper sees them."""
    def seen(cell):
        cell = re.sub(r"\$(-?[\d.]+)\\times10\^\{(-?\d+)\}\$", r"\1e\2", cell)
        for command, character in (("textless", "<"), ("textgreater", ">"), ("textbar", "|"), ("textquotedbl", '"'),
                                   ("textasciitilde", "~"), ("textasciicircum", "^"), ("textasciigrave", "`")):
            cell = cell.replace(f"\\{command}{{}}", character)
        cell = cell.replace("$\\times$", "\u00d7")
        return re.sub(r"\\([&%$#_{}])", r"\1", cell.removeprefix("{").removesuffix("}") if cell[:2] == "{[" else cell)

    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)[1].replace("\\midrule\n", "")
    rows = [line.removesuffix(r" \\") for line in body.splitlines()]
    return {"caption": seen(re.search(r"\\caption\{(.*)\}", text)[1]),
            "rows": [[seen(cell) for cell in re.split(r"(?<!\\) & |^& ", row)] for row in rows]}


def table_of(report, name):
    table, = (t for t in report.tables if t.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.texts]


def value(cell):
    """The first number of a cell."""
    return float(re.match(r"[\d.e+-]+", cell)[0])


# ---- the analyses once more, in plain NumPy over float64 states, one orbit at a time

def plain_rate(x):
    """Rate (None: there is none), floor over the last norm, and regime length, as the docstring says."""
    steps = np.linalg.norm(np.diff(x, axis=0), axis=1)
    m, end = len(steps), np.linalg.norm(x[-1])
    floor = max(np.median(steps[m - m // 4:]), 0.3 * np.finfo("float32").eps * end)
    over = next(t for t in range(m) if np.median(steps[t:t + 8]) <= 3 * floor)  # from here on mostly at the floor
    above = np.flatnonzero(steps[:over + 8] > 3 * floor)
    length = above[-1] + 1 if len(above) else 0
    away = np.median(np.linalg.norm(x[m - m // 4:m] - x[-1], axis=1))
    if (floor > 8 * np.finfo("float32").eps * end and away > 8 * floor) or length < 5:
        return None, floor / end, length
    return np.exp(np.polyfit(np.arange(length), np.log(steps[:length]), 1)[0]), floor / end, length


def plain_regime(x):
    """Algorithm 1 of Blayney et al. 2026 with tau .05 and rho .9."""
    s = np.array([a @ x[-1] / np.linalg.norm(a) / np.linalg.norm(x[-1]) for a in x[:-1]])
    n = len(s)
    t = np.arange(n)
    slope, base = np.polyfit(t, s, 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * t / n)
    spectrum = np.abs(np.fft.rfft((s - slope * t - base) * hann))[1:]
    k = np.argmax(spectrum)
    if np.sum(s >= 0.95) >= 0.9 * n:
        return "fixed point"
    if 4 * spectrum[k] / n >= 0.025 and k + 1 >= 2:
        return "orbit"
    return "slider" if slope > 0.05 / n else "unknown"


@pytest.fixture(scope="module")
def recomputed(stores):
    """For each model: layer -> rates, floors, lengths, last steps, distances; regimes of the last layer."""
    found = {}
    for name, store in zip(MODELS, stores, strict=True):
        states, layers = store.trajectories().states.double().numpy(), store.labels["layer"]
        found[name] = {layer: {
            "rates": [plain_rate(x) for x in states[layers == layer]],
            "late": [np.median(np.linalg.norm(x[-33:-1] - x[-1], axis=1)) / np.linalg.norm(x[-1])
                     for x in states[layers == layer]],
            "last": [np.linalg.norm(x[-1] - x[-2]) / np.linalg.norm(x[-1]) for x in states[layers == layer]],
        } for layer in (1, 2)}
        found[name]["regimes"] = [plain_regime(x) for x in states[layers == 2]]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_orbit_has_the_rate_floor_and_regime_of_a_plain_recomputation(measured, recomputed, name):
    rate, regime = measured(name, contraction_rate), measured(name, limit_regime_blayney)
    for layer in (1, 2):
        own = rate.select(layer=layer)
        rates, floors, lengths = zip(*recomputed[name][layer]["rates"], strict=True)
        assert [r is not None for r in rates] == own.found.tolist()
        assert own.found.all() if name != "nano-drifts" else not own.found.any()
        assert (own["rate_low"] <= own["rate"])[own.found].all()
        assert (own["rate"] <= own["rate_high"])[own.found].all()
        if name != "nano-drifts":
            np.testing.assert_allclose(own["relative_floor"], floors, rtol=0.01)
            assert (np.abs(own["regime_length"] - lengths) <= 1).mean() == 1
    assert regime.select(layer=2)["regime"].tolist() == recomputed[name]["regimes"]


def test_the_tables_hold_the_recomputed_numbers(report, recomputed, measured):
    rows, floors = table_of(report, "rates"), table_of(report, "floors")
    for table in (rows, floors):
        assert [(row["model"], row["layer"]) for row in table] == [(m, layer) for m in MODELS for layer in "12"]
    for row, below in zip(rows, floors, strict=True):
        rates, floor, lengths = zip(*recomputed[row["model"]][int(row["layer"])]["rates"], strict=True)
        count = sum(r is not None for r in rates)
        assert row["tokens with a rate"] == f"{count} of {N}"
        if not count:
            assert row["rate per recurrence"] == "none"
            continue
        own = measured(row["model"], contraction_rate).select(layer=int(row["layer"]))
        assert value(row["rate per recurrence"]) == pytest.approx(np.median(own.values), rel=0.01)
        assert 0.8 < np.median(own.values) / np.median(rates) < 1.4  # the line, drawn by fast modes, is too low
        assert value(row["95th percentile"]) == pytest.approx(np.quantile(own.values, 0.95), rel=0.01)
        assert value(row["half-life"]) == pytest.approx(-np.log(2) / np.log(np.median(own.values)), rel=0.01)
        assert value(below["relative floor"]) == pytest.approx(np.median(floor), rel=0.01)
        assert value(below["floor in spacings"]) == pytest.approx(np.median(floor) / 2**-23, rel=0.01)
        assert value(below["recurrences above it"]) == pytest.approx(np.median(lengths), abs=0.5)
    for row in table_of(report, "rest"):
        last = np.array(recomputed[row["model"]][2]["last"])
        late = np.array(recomputed[row["model"]][2]["late"])
        moving = np.maximum(last, late) > 1e-3
        assert value(row["tokens still moving"]) == pytest.approx(100 * moving.mean(), rel=0.01)
        assert value(row["median last step"]) == pytest.approx(np.median(last), rel=0.01)
        assert value(row["largest last step"]) == pytest.approx(last.max(), rel=0.01)
        assert value(row["median late distance"]) == pytest.approx(np.median(late), rel=0.01)
        assert value(row["largest late distance"]) == pytest.approx(late.max(), rel=0.01)


@pytest.mark.parametrize(("name", "analyzer"), [("regimes", limit_regime), ("published-regimes", limit_regime_blayney)])
def test_the_tables_of_regimes_count_what_the_analyzers_say(report, measured, recomputed, name, analyzer):
    rows = table_of(report, name)
    for model in MODELS:
        regime = measured(model, analyzer)
        for layer in (1, 2) if name == "regimes" else (2,):
            said = regime.select(layer=layer)["regime"]
            own = {row["regime"]: row for row in rows if (row["model"], row["layer"]) == (model, str(layer))}
            assert sum(int(row["tokens"]) for row in own.values()) == N
            for word, row in own.items():
                called = np.isin(said, word.removeprefix("none: ").split(", "))
                assert int(row["tokens"]) == called.sum()
                assert value(row["share of tokens"]) == pytest.approx(100 * called.mean(), rel=0.01)
                assert value(row["share of prompts"]) == pytest.approx(
                    100 * called.reshape(PROMPTS, -1).any(1).mean(), rel=0.01)
                assert word.startswith("none: ") == (not called.any())
        if name == "published-regimes":
            assert recomputed[model]["regimes"] == said.tolist()


def test_the_table_of_periods_counts_what_the_analyzer_says(report, measured):
    for model in MODELS:
        own = measured(model, minimal_period).select(layer=2)
        rows = [row for row in table_of(report, "periods") if (row["model"], row["layer"]) == (model, "2")]
        assert sum(int(row["tokens"]) for row in rows) == N
        at_rest = [int(row["tokens"]) for row in rows if row["period"].startswith("1 ")]
        assert sum(at_rest) == (own["period"] == 1).sum()


def test_the_findings_hold_the_numbers_of_the_tables(report):
    rates = {row["model"]: row for row in table_of(report, "rates") if row["layer"] == "2"}
    moving = {row["model"]: row["tokens still moving"] for row in table_of(report, "rest")}
    for finding, name in zip(report.findings, MODELS, strict=True):
        assert finding.startswith(f"{name}: ")
        assert f"(still moving: {moving[name]}, 95 % interval)" in finding
        assert f"{N} tokens of {PROMPTS} prompts" in finding
        assert f"{STEPS} recurrences" in finding
        cell = rates[name]["rate per recurrence"]
        assert cell in finding if cell != "none" else "no contraction rate can be measured" in finding
    text = "".join(cell for table in report.tables for row in table.texts for cell in row)
    told = [whole for finding in report.findings for whole in re.findall(r"[\d.e-]+ \[[^\]]*\](?: %)?", finding)]
    assert len(told) > 8
    assert all(number in text for number in told)


def test_what_became_of_every_orbit_adds_up(report, measured):
    rows = table_of(report, "exclusions")
    assert len({(row["model"], row["analyzer"]) for row in rows}) == 18
    for model, analyzer in {(row["model"], row["analyzer"]) for row in rows}:
        counts = {row["outcome"]: int(row["orbits"]) for row in rows
                  if (row["model"], row["analyzer"]) == (model, analyzer)}
        assert sum(counts.values()) == 2 * N
        function = {f.__name__: f for f in (contraction_rate, distance_to_limit, limit_regime, limit_regime_blayney,
                                             minimal_period, convergence_time)}[analyzer]
        assert counts == {o.value: n for o, n in measured(model, function).counts().items()}


def test_the_first_table_of_provenance_is_the_header(report, stores):
    rows = {row[""]: row for row in table_of(report, "recordings")}
    for name, store in zip(MODELS, stores, strict=True):
        header = store.header
        for row, expected in (("model hash (SHA-256)", header["model"]["sha256"][:16]), ("prompts", str(PROMPTS)),
                              ("prompts' hash (SHA-256)", header["prompts_sha256"][:16]), ("orbits", str(2 * N)),
                              ("recurrences in training", header["training_recurrences"]), ("computed in", "float32"),
                              ("recurrences recorded", "128"), ("device", "cpu"), ("features", "128"),
                              ("attention kernel", header["attention_kernel"]), ("start seeds", f"0 to {PROMPTS - 1}"),
                              ("torch", torch.__version__), ("norm placement", header["model"]["model"]["norm"])):
            assert rows[row][name] == expected
    thresholds = {row["analyzer"]: row["settings"] for row in table_of(report, "settings")}
    assert thresholds["distance_to_limit"] == "metric = relative, tolerance = 0.001"
    assert "floor_factor = 3" in thresholds["contraction_rate"]


# ---- one set of numbers in every format

def given(report):
    return [{"caption": t.caption, "rows": [list(t.columns), *map(list, t.texts)]} for t in report.tables]


def test_html_markdown_latex_csv_and_json_hold_the_same_cells(report, page, folder):
    held = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    tables = [table for section in held["sections"] for table in section["tables"]]
    expected = given(report)
    assert len(expected) > 12
    assert page.tables == expected
    assert markdown_tables((folder / "report.md").read_text(encoding="utf-8")) == expected
    assert [latex_table((folder / "tables" / f"{t.name}.tex").read_text(encoding="utf-8"))
            for t in report.tables] == expected
    assert [{"caption": t["caption"], "rows": [t["columns"], *([cell["text"] for cell in row] for row in t["rows"])]}
            for t in tables] == expected
    for table, own in zip(report.tables, expected, strict=True):
        with open(folder / "tables" / f"{table.name}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [column or table.name for column in own["rows"][0]]
        assert [[row[name] for name in names] for row in rows] == own["rows"][1:]


def test_every_sentence_is_the_same_in_every_format(report, page, folder):
    text, markdown = "".join(page.texts), unescaped((folder / "report.md").read_text(encoding="utf-8"))
    held = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert held["findings"] == list(report.findings)
    sentences = [report.title, *report.findings, *(t.note for t in report.tables),
                 *(d.caption for d in report.drawings),
                 *(words for section in report.sections for words in (section.title, *section.text, *section.points))]
    assert len(sentences) > 30
    for words in sentences:
        assert words in text
        assert words in markdown


def test_the_numbers_in_a_text_are_those_behind_it_rounded(report, folder):
    held = json.loads((folder / "report.json").read_text(encoding="utf-8"),
                      parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    cells = [cell for section in held["sections"] for table in section["tables"] for row in table["rows"]
             for cell in row if "value" in cell]
    assert len(cells) > 300
    for cell in cells:
        numbers = [float(n) for n in re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?",
                                                cell["text"].replace(", ", " ; "))
                   ] if "," not in cell["text"].replace(", ", " ") else [float(cell["text"].replace(",", ""))]
        behind = [cell[kind] for kind in ("value", "low", "high") if kind in cell]
        assert len(numbers) == len(behind)
        digits = 2 if len(behind) == 1 and cell["text"].startswith("<") else 0.006
        np.testing.assert_allclose(numbers, behind, rtol=digits, atol=1e-4 if digits == 2 else 0)


def test_json_csv_and_parquet_hold_the_same_unrounded_estimates(report, folder, tmp_path):
    pandas = pytest.importorskip("pandas")
    held = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    with open(folder / "estimates.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    report.save(tmp_path / "r", formats=["parquet"])
    frame = pandas.read_parquet(tmp_path / "r" / "estimates.parquet")
    assert len(rows) == len(frame) == len(held["estimates"]) == len(report.estimates) > 20
    for i, (row, entry, estimate) in enumerate(zip(rows, held["estimates"], report.estimates, strict=True)):
        assert entry == json.loads(json.dumps(estimate.to_dict(), default=str))
        for name, value in entry.items():
            assert (json.loads(row[name]) if isinstance(value, dict | list) else row[name]) == \
                (value if isinstance(value, dict | list) else "" if value is None else str(value))
        for name in ("value", "low", "high"):
            assert float(row[name]) == frame[name][i] == getattr(estimate, name)
        assert estimate.low <= estimate.value <= estimate.high


def test_every_estimate_is_shown_and_every_interval_shown_is_an_estimate(report):
    def triples(tables):
        return {tuple(float(f"{float(n):.3g}") for n in found) for table in tables for row in table.texts
                for cell in row for found in INTERVAL.findall(cell)}

    own = [table for table in report.tables if not table.name.startswith(("power", "surrogates", "comparisons"))]
    scaled = [(e, 100.0 if "share" in e.statistic else 1.0) for e in report.estimates]
    known = {tuple(float(f"{scale * n:.3g}") for n in (e.value, e.low, e.high)) for e, scale in scaled}
    assert triples(own) == known
    assert triples([t for t in own if t.name == "intervals"]) == known
    assert len(known) > 8


STRUCTURE = {
    "schema": "dynloop report", "schema_version": "2.0", "title": "str", "findings": ["str"],
    "sections": [{"name": "str", "title": "str", "text": ["str"], "points": ["str"],
                  "tables": [{"name": "str", "caption": "str", "columns": ["str"], "note": "str"}],
                  "figures": [{"name": "str", "caption": "str", "alt": "str"}]}],
    "estimates": [{"name": "str", "statistic": "str", "value": "float", "low": "float", "high": "float", "unit": "str",
                   "confidence_level": "float", "method": "str", "resample": "str", "n_units": "int", "n": "int",
                   "excluded": {}, "settings": {}, "labels": {}, "target": "str", "units": {}, "notes": ["str"]}],
    "provenance": {"dynloop": "str", "n_resamples": "int", "resample": "str", "recordings": {}},
}


def assert_structure(value, form, place="report"):
    if isinstance(form, dict):
        assert set(form) <= set(value), place
        for name, inner in form.items():
            assert_structure(value[name], inner, f"{place}.{name}")
    elif isinstance(form, list):
        assert isinstance(value, list), place
        for inner in value:
            assert_structure(inner, form[0], place)
    elif form in ("str", "int", "float"):
        assert type(value).__name__ == form, f"{place}: {value!r}"
    else:
        assert value == form, place


def test_the_results_file_has_the_structure_that_its_version_promises(folder):
    held = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert_structure(held, STRUCTURE)
    assert set(held) == set(STRUCTURE)
    assert [section["name"] for section in held["sections"]] == [
        "recordings", "rest", "rates", "floors", "regimes", "periods", "control", "figures", "stages", "calibration",
        "exclusions", "limits", "intervals"]
    assert [table["name"] for section in held["sections"] for table in section["tables"]] == [
        "recordings", "settings", "rest", "rates", "floors", "regimes", "published-regimes", "periods", "stages",
        "likeness", "power", "planted", "surrogates", "exclusions", "intervals"]
    for section in held["sections"]:
        for table in section["tables"]:
            assert all(len(row) == len(table["columns"]) for row in table["rows"])
            assert all(set(cell) <= {"text", "value", "low", "high"} for row in table["rows"] for cell in row)
    assert held["provenance"]["recordings"]["nano-drifts"]["model"]["sha256"]


def test_every_estimate_says_what_was_counted_and_left_out(report):
    for estimate in report.estimates:
        assert estimate.resample == "prompt"
        assert estimate.n_units == PROMPTS
        whole = PROMPTS if estimate.name.startswith("stage_profile") else N  # a row a prompt, of the others a token
        assert estimate.n + sum(estimate.excluded.values()) == whole
        assert estimate.labels["model"] in MODELS
        assert estimate.labels["layer"] in (1, 2)
        assert estimate.settings
        assert estimate.confidence_level == 0.95


# ---- the page

def test_the_page_needs_nothing_but_itself(page, folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert page.links
    for name, link in page.links:
        assert link.startswith(("#", "data:")), (name, link)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#|[\"']?data:)", text)
    policy, = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_ids_are_unique_and_every_reference_meets_one(page, folder):
    assert len(page.ids) == len(set(page.ids)) > 100
    text = (folder / "report.html").read_text(encoding="utf-8")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {link[1:] for _, link in page.links if link.startswith("#")}
    assert used <= set(page.ids)
    assert len(used) > 20


def test_figures_have_an_alternative_text_and_tables_a_caption_and_heads(page, report):
    assert page.images == [drawing.alt for drawing in report.drawings]
    assert all(len(alt) > 30 for alt in page.images)
    assert len(set(page.images)) == len(page.images) == 15
    assert all(table["caption"].strip() for table in page.tables)
    assert set(page.heads) == {"col", "row"}
    assert page.heads.count("row") == sum(len(table["rows"]) - 1 for table in page.tables)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert ("html", {"lang": "en"}) in page.tags


def test_every_figure_states_recurrences_thresholds_and_n(report):
    for number, name in enumerate(MODELS, 1):
        distance, path, heat = (next(d for d in report.drawings if d.name == f"{number}-{name}-{kind}")
                                for kind in ("distance", "path", "map"))
        for drawing in (distance, path, heat):
            assert name in drawing.caption
            assert f"{STEPS} recurrences" in drawing.caption
        assert f"{2 * N} orbits of {PROMPTS} prompts" in distance.caption
        assert "steps above 3 floors, at least 5 of them" in distance.caption
        assert "n = 1" in path.caption
        assert f"n = {len(TOKENS)} orbits" in heat.caption
        assert "At rest counts what lies below 0.001" in heat.caption
        assert re.search(r"prompt \d+.*token \d+", path.caption)


def test_figures_are_files_too_and_the_same_ones(report, folder):
    assert {path.name for path in (folder / "figures").iterdir()} == \
        {f"{d.name}.{kind}" for d in report.drawings for kind in ("svg", "png", "pdf")}
    text = (folder / "report.html").read_text(encoding="utf-8")
    for drawing in report.drawings:
        assert (folder / "figures" / f"{drawing.name}.svg").read_text(encoding="utf-8") == drawing.svg
        assert drawing.svg in text
        assert (folder / "figures" / f"{drawing.name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert f"](figures/{drawing.name}.png)" in (folder / "report.md").read_text(encoding="utf-8")


def test_the_path_is_that_of_the_orbit_in_its_caption(report, measured):
    drawing = next(d for d in report.drawings if d.name == "1-nano-settles-path")
    prompt, token = map(int, (re.search(rf"{label} (\d+)", drawing.caption)[1] for label in ("prompt", "token")))
    lengths = measured(MODELS[0], contraction_rate).select(layer=2)
    assert lengths.select(prompt=prompt, token=token)["regime_length"] == lengths["regime_length"].max()


def test_the_same_recordings_give_the_same_bytes(stores, folder, tmp_path):
    again = build_report([open_store(store.folder) for store in stores]).save(tmp_path / "r").parent
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


# ---- other recordings

def decay(rates, *, steps=60, dim=6, seed=0):
    """Orbits (prompts, tokens, steps, dim) that contract at the given rates (prompts, tokens)."""
    rng = np.random.default_rng(seed)
    rates = np.asarray(rates)[..., None, None]
    return 3 * rng.normal(size=(*rates.shape[:2], 1, dim)) + \
        rng.normal(size=(*rates.shape[:2], 1, dim)) * rates ** np.arange(steps)[:, None]


def labelled(states, **more):
    p, t = states.shape[:2]
    return Trajectories(states.reshape(p * t, *states.shape[2:]), labels={
        "prompt": np.repeat(np.arange(p), t), "token": np.tile(np.arange(t), p), **more})


@pytest.fixture
def states(small_panel):
    return decay(np.linspace(0.5, 0.8, 24).reshape(6, 4)).astype("float32")


def test_a_tensor_file_gives_a_report_with_the_known_rate(tmp_path, states):
    np.save(tmp_path / "x.npy", states.transpose(1, 2, 3, 0))
    orbits = load(tmp_path / "x.npy", axes="token,recurrence,feature,prompt", labels={"model": "theirs"})
    report = build_report([orbits], n_resamples=100)
    row, = table_of(report, "rates")
    assert (row["model"], row["tokens with a rate"]) == ("theirs", "24 of 24")
    assert "layer" not in row
    assert value(row["rate per recurrence"]) == pytest.approx(0.65, rel=0.01)
    assert report.findings[0].startswith("theirs: all 24 tokens of 6 prompts come to rest within 60 recurrences")
    page = Page(report.save(tmp_path / "r").read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))


def test_trajectories_and_the_store_that_holds_them_give_one_report(tmp_path, states):
    orbits = labelled(states, layer=np.tile([1, 2], 12), model="m")
    one, two = (build_report([source], n_resamples=100) for source in (orbits, save(orbits, tmp_path / "s")))
    assert one.tables == two.tables
    assert one.findings == two.findings
    assert [d.svg for d in one.drawings] == [d.svg for d in two.drawings]


def test_prompts_and_layers_alone_are_enough(states):
    orbits = Trajectories(states[:, 0], labels={"prompt": range(6)})
    report = build_report([orbits], n_resamples=100)
    assert report.findings[0].startswith("recording 1: all 6 tokens of 6 prompts")
    assert len(report.drawings) == 6


def test_a_recording_without_the_label_to_resample_is_refused(states):
    with pytest.raises(ValueError, match=r"no label 'prompt' to resample; it has token, text. Name one of these"):
        build_report([Trajectories(states[:, 0], labels={"token": range(6), "text": range(6)})])
    with pytest.raises(ValueError, match="no label 'prompt' to resample; it has no labels"):
        build_report([Trajectories(states[:, 0])])
    with pytest.raises(ValueError, match="at least one recording; got none"):
        build_report([])


def test_orbits_may_be_declared_independent(states):
    report = build_report([labelled(states)], resample="orbit", n_resamples=100)
    assert {e.resample for e in report.estimates} == {"orbit"}
    assert "share of orbits" not in table_of(report, "regimes")[0]


def test_figures_of_names_alike_have_files_of_their_own(states):
    report = build_report([labelled(states, model=name) for name in ("a b", "a-b", "???", "!!!")], n_resamples=100)
    assert len({drawing.name for drawing in report.drawings}) == 15


def test_another_label_may_be_what_is_independent(states):
    report = build_report([Trajectories(states[:, 0], labels={"text": range(6)})], resample="text", n_resamples=100)
    assert "6 orbits of 6 texts" in report.findings[0]
    assert {e.resample for e in report.estimates} == {"text"}


def test_one_prompt_is_refused_with_what_to_do(states):
    with pytest.raises(ValueError, match=r"resampling needs at least two prompts; got 1. Record more, or state"):
        build_report([labelled(states[:1])])


def test_an_unfinished_store_is_refused(tmp_path, states):
    store = save(labelled(states), tmp_path / "s")
    lines = (store.folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (store.folder / "manifest.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ValueError, match="is unfinished: its capture was interrupted"):
        build_report([open_store(store.folder)])


def test_a_recording_in_which_no_orbit_has_a_rate(tmp_path, rng, small_panel):
    noise = labelled(rng.normal(size=(6, 4, 60, 5)).astype("float32"))
    report = build_report([noise], n_resamples=100)
    assert report.findings[0] == ("recording 1: none of 24 tokens of 6 prompts comes to rest within 60 recurrences "
                                  "(still moving: 100 [54.1, 100] %, 95 % interval); "
                                  "no contraction rate can be measured. Regimes by limit_regime, in shares of the "
                                  "tokens: 100 [54.1, 100] % undetermined; no orbit, quasi-periodic movement, slider "
                                  "or chaos (each 0 [0, 45.9] %).")
    row, = table_of(report, "rates")
    assert (row["rate per recurrence"], row["tokens with a rate"]) == ("none", "0 of 24")
    assert not [e for e in report.estimates if e.name.startswith("contraction_rate") and e.statistic == "median"]
    Page(report.save(tmp_path / "r").read_text(encoding="utf-8"))


def test_some_orbits_that_leave_the_finite_numbers_are_counted_and_shorten_nothing_else(states):
    broken = states.copy()
    broken[0, 1, 30:], broken[2, 3, 7, 2], broken[4, 0, 0] = np.nan, np.inf, -np.inf
    report = build_report([labelled(broken)], n_resamples=100)
    assert "21 of 24 tokens of 6 prompts come to rest within 60 recurrences (still moving: 0 [" in report.findings[0]
    assert "3 left the finite numbers" in report.findings[0]
    assert "measured on 21 tokens" in report.findings[0]
    row, = table_of(report, "rates")
    whole, = measure(labelled(states), [contraction_rate])
    gone = np.array([1, 11, 16])
    assert row["tokens with a rate"] == "21 of 24"
    assert value(row["rate per recurrence"]) == pytest.approx(np.median(np.delete(whole["rate"], gone)), rel=0.01)
    outcomes = {(r["analyzer"], r["outcome"]): r["orbits"] for r in table_of(report, "exclusions")}
    for analyzer in ("distance_to_limit", "contraction_rate", "limit_regime_blayney"):
        assert outcomes[analyzer, "not finite"] == "3"
        assert outcomes[analyzer, "found"] == "21"
    assert Outcome.NOT_FINITE.sentence in [r["meaning"] for r in table_of(report, "exclusions")]


def test_a_layer_whose_rates_come_from_one_prompt_gets_no_interval(states, rng):
    mixed = states.copy()
    mixed[1:] = rng.normal(size=mixed[1:].shape)
    row, = table_of(build_report([labelled(mixed)], n_resamples=100), "rates")
    assert (row["rate per recurrence"], row["tokens with a rate"]) == ("none", "4 of 24")


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 9])
def test_short_recordings_are_said_to_be_short(states, steps):
    report = build_report([labelled(states[:, :, :steps])], n_resamples=100)
    outcomes = {(r["analyzer"], r["outcome"]) for r in table_of(report, "exclusions")}
    assert (("limit_regime_blayney", "too short") in outcomes) == (steps < 9)
    assert (("contraction_rate", "too short") in outcomes) == (steps < 6)


def test_several_recordings_of_one_name_are_told_apart(states):
    report = build_report([labelled(states, model="m"), labelled(states[:4], model="m"), labelled(states)],
                          n_resamples=100)
    assert [finding.split(":")[0] for finding in report.findings] == ["m (1)", "m (2)", "recording 3"]
    assert len({drawing.name for drawing in report.drawings}) == 12


def test_odd_names_are_escaped(tmp_path, states):
    name = 'a|b <script>alert("1")</script> & c'
    report = build_report([labelled(states, model=name)], n_resamples=100)
    page = Page(report.save(tmp_path / "r").read_text(encoding="utf-8"))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.tables[0]["rows"][0][1] == name
    assert page.tables[2]["rows"][1][0] == name
    assert any(alt.startswith(f"{name}: ") for alt in page.images)
    tables = markdown_tables((tmp_path / "r" / "report.md").read_text(encoding="utf-8"))
    assert tables[2]["rows"][1][0] == name
    assert latex_table((tmp_path / "r" / "tables" / "rest.tex").read_text())["rows"][1][0] == name
    sections = json.loads((tmp_path / "r" / "report.json").read_text())["sections"]
    assert sections[1]["tables"][0]["rows"][0][0] == {"text": name}


# ---- saving

@pytest.fixture(scope="module")
def small(few_planted):
    with few_planted():
        return build_report([labelled(decay(np.full((3, 2), 0.6)).astype("float32"), model="small")], n_resamples=100)


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path, small):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match=r"holds something else than a report. Name a new folder"):
            small.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_report_is_replaced_and_no_half_written_file_stays(tmp_path, small):
    (tmp_path / "r").mkdir()  # an empty folder will do
    small.save(tmp_path / "r")
    dataclasses.replace(small, title="Second <thoughts>").save(str(tmp_path / "r"))
    assert "<h1>Second &lt;thoughts&gt;</h1>" in (tmp_path / "r" / "report.html").read_text()
    assert (tmp_path / "r" / "report.md").read_text().startswith("# Second \\<thoughts>\n")
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interrupted_save_leaves_the_earlier_page_whole(tmp_path, small, monkeypatch):
    page = small.save(tmp_path / "r")
    before = page.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Report, "to_html", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dataclasses.replace(small, title="Second").save(tmp_path / "r")
    assert page.read_bytes() == before
    dataclasses.replace(small, title="Second").save(tmp_path / "r")
    assert b"<h1>Second</h1>" in page.read_bytes()


def test_many_runs_share_one_figure_of_distances(states):
    runs = [labelled(states, model=f"run {n}") for n in range(5)]
    report = build_report([*runs, labelled(states[..., :40, :], model="short")], n_resamples=100)
    distance, = (d for d in report.drawings if "distance" in d.name)
    assert "5 of 6 runs: those recorded and measured like the first" in distance.caption
    assert all(f"run {n}" in distance.alt for n in range(5))
    assert "short" not in distance.alt


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda x: np.where(np.arange(x.shape[-2])[:, None] < 20, x, np.nan), "left the finite numbers"),
    (lambda x: x[..., :1, :], "are too short to tell")])
def test_what_cannot_be_judged_is_not_called_moving_or_at_rest(states, spoil, said):
    report = build_report([labelled(spoil(np.asarray(states)), model="m")], n_resamples=100)
    assert "can be judged" in report.findings[0]
    assert said in report.findings[0]
    assert "still moving" not in report.findings[0]


def test_the_control_of_a_second_study_stands_beside_its_own_model(states):
    one = build_report([labelled(states, model="m"), labelled(states, model="m-untrained")], n_resamples=100).study
    control = next(s for s in build_report([one, one], n_resamples=100).sections if s.name == "control")
    assert [row[0].text for row in control.tables[0].rows[::len(control.tables[0].rows) // 2]] == ["m (1)", "m (2)"]


def test_a_wide_figure_stands_at_its_own_width(folder):
    assert re.search(r'<figure class="wide" style="max-width: [\d.]+rem">', (folder / "report.html").read_text("utf-8"))
