"""The explorer's page holds the analyzers' numbers, asks for nothing, and works by mouse, keys and screen reader."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from browser import accessibility, cut_off, one_browser, open_page  # noqa: F401

from dynloop import Trajectories, capture
from dynloop.analyzers import contraction_rate, distance_to_limit, recurrence_quantification, successive_distance
from dynloop.cli import main
from dynloop.nano import shipped_prompts
from dynloop.report.explorer import MOST_STEPS, MOST_TOKENS, explorer

NASTY = "</script><script>alert(1)</script>&<b>"
SIZES = [(1280, 900, False), (390, 844, False), (390, 844, True), (1280, 900, True)]
pytestmark = pytest.mark.usefixtures("one_browser")


def recording(n_tokens=5, n_steps=48, dim=6):
    """Tokens of two prompts and two layers that fall, each at a rate of its own."""
    rng = np.random.default_rng(0)
    t = np.arange(n_steps)[:, None]
    states, labels = [], {"prompt": [], "token": [], "layer": []}
    for prompt in (3, 7):
        for layer in (1, 2):
            for token in range(n_tokens):
                rate = 0.6 + 0.3 * token / n_tokens
                states.append(rng.normal(size=dim) + rate**t * rng.normal(size=dim) * [1, *[0.3] * (dim - 1)]
                              + 1e-5 * rng.normal(size=(n_steps, dim)))
                for name, value in zip(labels, (prompt, 2 * token, layer), strict=True):
                    labels[name].append(value)
    return Trajectories(np.array(states, dtype=np.float32), labels={**labels, "model": "made up"})


@pytest.fixture(scope="module")
def orbits():
    return recording()


@pytest.fixture(scope="module")
def page(orbits, tmp_path_factory):
    texts = ["a", "", NASTY, "", " ", "", "\n", "", "long, long word"]
    return explorer(orbits, prompt=7, out=tmp_path_factory.mktemp("explorer"), texts=texts)


@pytest.fixture(scope="module")
def shown(orbits):
    return orbits.select(prompt=7, layer=2)


def data_of(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(),
                                re.DOTALL)[1])


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def test_the_maps_hold_the_analyzers_numbers(page, shown):
    data = data_of(page)
    distance = distance_to_limit(shown, metric="relative").values
    np.testing.assert_allclose(10 ** numbers(data["maps"]["distance"], "<f4").reshape(5, 48)[:, :-1],
                               distance[:, :-1], rtol=1e-5)
    steps = numbers(data["maps"]["step"], "<f4").reshape(5, 48)
    np.testing.assert_allclose(10 ** steps[:, 1:], successive_distance(shown, metric="relative").values, rtol=1e-5)
    assert np.isnan(steps[:, 0]).all()
    assert data["recurrences"] == list(range(1, 49))
    assert [token["token"] for token in data["tokens"]] == [0, 2, 4, 6, 8]


def test_the_facts_are_what_the_analyzers_say(page, shown):
    rate = contraction_rate(shown)
    for o, token in enumerate(data_of(page)["tokens"]):
        facts = dict(token["facts"])
        assert facts["Contraction rate"].startswith(f"{rate.values[o]:.3g} per recurrence [{rate['rate_low'][o]:.3g}")
        assert facts["Regime"].startswith("fixed point")
        assert facts["At rest"] == "yes"


def test_paths_are_the_principal_components(page, shown):
    from sklearn.decomposition import PCA

    data = data_of(page)
    paths = numbers(data["paths"], "<u2").reshape(5, 48, 2) / 65535
    for o, token in enumerate(data["tokens"]):
        x = shown.states[o].double().numpy()
        pca = PCA(2).fit(x)
        low, high = np.array(token["plane"]["window"]).reshape(2, 2).T
        found, plane = low + paths[o] * (high - low), pca.transform(x)
        signs = np.sign((found * plane).sum(0))
        np.testing.assert_allclose(found * signs, plane, atol=1e-4 * np.ptp(plane))
        np.testing.assert_allclose(token["plane"]["variance"], pca.explained_variance_ratio_, rtol=1e-6)


def test_a_pair_is_recurrent_on_the_page_exactly_when_the_analyzer_counts_it(page, shown):
    data = data_of(page)
    plots = numbers(data["plots"], "u1").reshape(5, -1)
    low, high = np.triu_indices(48)
    found = recurrence_quantification(shown)
    for o in range(5):
        x = shown.states[o].double().numpy()
        d = np.linalg.norm(x[:, None] - x[None], axis=2)[low, high]
        np.testing.assert_array_equal(plots[o] < data["code"]["at"], d < found["threshold"][o])
        off = low != high
        assert (plots[o][off] < data["code"]["at"]).mean() == pytest.approx(found["recurrence_rate"][o])


def test_texts_cannot_leave_the_page_and_blanks_are_shown(page):
    text = page.read_text()
    assert "alert(1)" in text
    assert "</script><script>alert" not in text
    assert "<b>&" not in text
    assert [token["text"] for token in data_of(page)["tokens"]] == ["a", NASTY, "␣", "⏎", "long,␣long␣word"]


def test_the_policy_lets_the_pages_own_script_and_style_alone(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert not re.search(r'\son\w+="|\sstyle="|https?://(?!www\.w3\.org)', text)


def test_the_same_orbits_give_the_same_bytes(orbits, tmp_path):
    one, other = (explorer(orbits, prompt=3, out=tmp_path / name).read_bytes() for name in ("a", "b.html"))
    assert one == other
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b.html"}


def test_much_is_thinned_and_the_page_says_so(tmp_path):
    n_tokens, n_steps = MOST_TOKENS + 20, MOST_STEPS + 30
    states = np.random.default_rng(0).normal(size=(n_tokens, n_steps, 3)).astype(np.float32)
    labels = {"prompt": 0, "token": np.arange(n_tokens)}
    path = explorer(Trajectories(states, labels=labels), prompt=0, out=tmp_path / "much.html")
    data = data_of(path)
    assert len(data["tokens"]) == MOST_TOKENS
    assert (data["tokens"][0]["token"], data["tokens"][-1]["token"]) == (0, n_tokens - 1)
    assert len(data["recurrences"]) == MOST_STEPS
    assert (data["recurrences"][0], data["recurrences"][-1]) == (1, n_steps)
    assert f"{MOST_TOKENS} of {n_tokens} tokens are shown" in path.read_text()
    assert f"{MOST_STEPS} of {n_steps} recurrences are shown" in path.read_text()
    assert path.stat().st_size < 10 * 2**20


def test_orbits_that_end_early_or_never_move_have_no_numbers_there(tmp_path):
    states = np.random.default_rng(0).normal(size=(4, 20, 3))
    states[1] = 1.0
    states[2, 9:] = np.nan
    orbits = Trajectories(states, labels={"prompt": 0, "token": np.arange(4)}, lengths=[20, 20, 9, 1])
    data = data_of(explorer(orbits, prompt=0, out=tmp_path))
    assert [token["length"] for token in data["tokens"]] == [20, 20, 9, 1]
    assert data["tokens"][1]["plane"] is None
    assert data["tokens"][3]["plane"] is None
    steps = numbers(data["maps"]["step"], "<f4").reshape(4, 20)
    assert np.isnan(steps[2, 9:]).all()
    assert np.isfinite(steps[2, 1:9]).all()
    assert (numbers(data["plots"], "u1").reshape(4, -1)[3] == data["code"]["unknown"]).all()


def test_what_cannot_be_shown_is_refused(orbits, tmp_path):
    for given, error, words in (
            ({"source": np.ones(3), "prompt": 0}, TypeError, r"Store or Trajectories; got ndarray"),
            ({"source": Trajectories(np.ones((2, 3, 1))), "prompt": 0}, ValueError, r"labels prompt and token"),
            ({"source": orbits, "prompt": 1}, ValueError, r"no prompt 1; there are 3, 7"),
            ({"source": orbits, "prompt": 3, "layer": 9}, ValueError, r"no layer 9 of prompt 3; there are 1, 2"),
            ({"source": orbits, "prompt": 3, "threshold": 0}, ValueError, r"threshold"),
            ({"source": orbits, "prompt": 3, "texts": ["a"]}, ValueError, r"up to 8; got 1")):
        with pytest.raises(error, match=words):
            explorer(**given, out=tmp_path / "x")
    twice = Trajectories(np.ones((2, 9, 1)), labels={"prompt": 0, "token": 0, "seed": [0, 1]})
    with pytest.raises(ValueError, match=r"belong to one token; they differ in seed"):
        explorer(twice, prompt=0, out=tmp_path / "x")
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"does not end in \.html"):
        explorer(orbits, prompt=3, out=tmp_path / "file.txt")
    assert not (tmp_path / "x").exists()


def test_a_store_knows_the_texts_and_the_command_writes_the_page(tmp_path, capsys):
    store = capture("nano-settles", shipped_prompts()[:2], out=tmp_path / "s", n_recurrences=20, tokens=[0, 5, 90])
    assert main(["explore", str(store.folder), "--prompt", "1", "--out", str(tmp_path / "page")]) == 0
    assert "explorer.html" in capsys.readouterr().out
    data = data_of(tmp_path / "page" / "explorer.html")
    wanted = [shipped_prompts()[1].encode()[i:i + 1].decode("latin-1") for i in (0, 5, 90)]
    visible = {" ": "␣", "\n": "⏎"}
    assert [token["text"] for token in data["tokens"]] == [visible.get(c, c) for c in wanted]
    assert main(["explore", str(store.folder), "--prompt", "9", "--out", str(tmp_path / "page")]) == 1
    assert "no prompt 9" in capsys.readouterr().err


# ---- in a browser

def said(page):
    return page.locator("#said").text_content()


def panels(page):
    """What the three panels draw."""
    return (page.locator("#path").inner_html(), page.locator("#curve").inner_html(),
            page.evaluate("document.getElementById('plot').toDataURL()"))


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_page_asks_for_nothing_complains_of_nothing_and_cuts_nothing_off(page, width, height, dark):
    with open_page(page, width, height, dark=dark) as (opened, errors, requests):
        assert cut_off(opened) == []
        opened.locator("#token-1").click()
        opened.get_by_label("length of the step", exact=True).check()
        assert cut_off(opened) == []
        assert opened.title().startswith("Explorer: ")
        assert errors == []
        assert requests == []


@pytest.mark.parametrize(("width", "height", "dark"), [SIZES[0], SIZES[2]])
def test_an_accessibility_checker_finds_nothing_serious(page, width, height, dark):
    assert accessibility(page, width, height, dark=dark) == []


def test_a_click_on_the_map_or_the_text_changes_every_panel(page, shown):
    distance = distance_to_limit(shown, metric="relative").values
    with open_page(page, 1280, 900) as (opened, errors, _):
        assert said(opened).startswith("Token 0 “a”, recurrence 8 of 48")
        before = panels(opened)
        opened.locator("#token-4").click()
        assert said(opened).startswith("Token 8 “long,␣long␣word”, recurrence 8 of 48: distance to the last state "
                                       f"{distance[4, 7]:.3g}")
        after = panels(opened)
        assert all(a != b for a, b in zip(before, after, strict=True))
        box = opened.locator("#map canvas").bounding_box()
        opened.mouse.click(box["x"] + box["width"] * 20.5 / 48, box["y"] + box["height"] * 2.5 / 5)
        assert said(opened).startswith("Token 4 “␣”, recurrence 21 of 48")
        assert all(a != b for a, b in zip(after, panels(opened), strict=True))
        assert opened.locator("#facts dd").first.text_content().startswith("fixed point")
        assert errors == []


def test_keys_reach_every_token_and_recurrence(page):
    with open_page(page, 1280, 900) as (opened, errors, _):
        opened.locator("#token-0").focus()
        opened.keyboard.press("ArrowRight")
        assert said(opened).startswith("Token 2 ")
        assert opened.evaluate("document.activeElement.id") == "token-1"
        assert opened.evaluate("[...document.querySelectorAll('[role=option][tabindex=\"0\"]')].length") == 1
        opened.keyboard.press("End")
        assert said(opened).startswith("Token 8 ")
        opened.keyboard.press("ArrowDown")  # there is none behind the last
        assert said(opened).startswith("Token 8 ")
        opened.locator("#map").focus()
        before = panels(opened)
        for key in ("Home", "ArrowDown", "ArrowRight", "ArrowRight"):
            opened.keyboard.press(key)
        assert said(opened).startswith("Token 2 ")
        assert "recurrence 10 of 48" in said(opened)
        assert all(a != b for a, b in zip(before, panels(opened), strict=True))
        assert opened.locator("#map").get_attribute("aria-valuenow") == "2"
        assert "recurrence 10 of 48" in opened.locator("#map").get_attribute("aria-valuetext")
        opened.locator("#recurrence").focus()
        opened.keyboard.press("ArrowRight")
        assert "recurrence 11 of 48" in said(opened)
        assert opened.evaluate("location.hash") == "#token=2&recurrence=11"
        assert errors == []


def test_an_address_with_a_token_opens_there(page):
    with open_page(page, 390, 844) as (opened, errors, _):
        opened.goto(page.resolve().as_uri() + "#token=6&recurrence=30")
        opened.reload()
        assert said(opened).startswith("Token 6 “⏎”, recurrence 30 of 48")
        assert errors == []


def test_orbits_without_numbers_are_drawn_without_errors(tmp_path):
    states = np.random.default_rng(0).normal(size=(3, 12, 3))
    states[1] = 0.0
    orbits = Trajectories(states, labels={"prompt": 0, "token": np.arange(3)}, lengths=[12, 12, 1])
    path = explorer(orbits, prompt=0, out=tmp_path)
    with open_page(path, 1280, 900) as (opened, errors, _):
        for token in range(3):
            opened.locator(f"#token-{token}").click()
            assert said(opened).startswith(f"Token {token}, recurrence 8 of 12")
        assert "step none of the norm" in said(opened)
        assert "does not move" in opened.locator("#path").text_content()
        assert errors == []
        assert cut_off(opened) == []
