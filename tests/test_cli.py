"""The command line: quick to answer, one sentence for what went wrong, and nothing half-written taken for whole."""

import contextlib
import errno
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import dynloop
from dynloop import open_store, save
from dynloop.cli import main
from dynloop.nano import NanoConfig, NanoModel, save_model, shipped_prompts
from dynloop.store import StoreError, StoreWriter

capture_module = importlib.import_module("dynloop.recording.capture")
COMMANDS = ("quickstart", "train", "capture", "analyze", "report", "info")
pytestmark = pytest.mark.usefixtures("small_panel")
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "numba", "pandas", "xarray", "sklearn", "safetensors", "jinja2")


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    """One thread: tiny products lose more to the barrier than they gain, tenfold on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(NanoModel(NanoConfig(width=16, n_heads=2), seed=0), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def few_prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(shipped_prompts()[:4]))
    return path


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory, model_folder, few_prompts):
    folder = tmp_path_factory.mktemp("store")
    assert main(["capture", str(model_folder), "--prompts", str(few_prompts), "--out", str(folder / "s"),
                 "--recurrences", "20", "--tokens", "0:96:24"]) == 0
    return folder / "s"


@pytest.fixture
def run(capsys):
    """Exit code, stdout and stderr of a command."""
    def command(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return command


@pytest.fixture
def refused(run):
    """What a refused command says: one clear sentence or two on one line."""
    def command(*arguments, code=1):
        found, out, error = run(*arguments)
        assert found == code
        assert "Traceback" not in error
        assert not out
        if code == 1:
            assert error.startswith("dynloop: ")
            assert error.count("\n") == 1
        return error
    return command


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, **options)


# ---- quick answers

def test_help_of_every_command_exits_0_without_loading_anything_heavy():
    done = python(f"""
import contextlib, io, sys
from dynloop.cli import main
for arguments in [["--help"], ["--version"], *([command, "--help"] for command in {COMMANDS!r})]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main(arguments)
    except SystemExit as stop:
        print(stop.code, len(out.getvalue()) > 8, *arguments)
print(sorted(set({HEAVY!r}) & sys.modules.keys()))
""")
    assert done.stdout.splitlines() == ["0 True --help", "0 True --version",
                                        *(f"0 True {command} --help" for command in COMMANDS), "[]"]
    assert not done.stderr


def test_a_bare_import_loads_nothing_heavy_and_lists_its_names():
    done = python(f"import sys, dynloop; print(sorted(set({HEAVY!r}) & sys.modules.keys())); "
                  "print(set(dynloop.__all__) <= set(dir(dynloop)) | {'__version__'})")
    assert (done.stdout, done.stderr) == ("[]\nTrue\n", "")
    assert all(getattr(dynloop, name) is not None for name in dynloop.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dynloop.nothing


def test_help_names_every_setting_of_a_model_and_its_training(run):
    code, out, _ = run("train", "--help")
    assert code == 0
    assert all(flag in out for flag in ("--injection", "--norm ", "--no-loop-norm", "--n-recurrences", "--recipe",
                                        "--initial-state", "--no-looped", "--learning-rate", "--checkpoint-every"))


def test_python_m_dynloop_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "dynloop", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"dynloop {dynloop.__version__}\n")


@pytest.mark.parametrize("arguments", [
    [], ["analyse"], ["capture"], ["report", "s"], ["report", "--out", "r"],
    ["analyze", "s", "--report", "r", "--format", "word"], ["capture", "nano-settles"], ["analyze", "--report", "r"],
    ["capture", "nano-settles", "--out", "s", "--untrained", "x"], ["info"], ["train", "--out", "m", "--monitor", "x"],
    ["train", "--out", "m", "--norm", "post"], ["train", "--out", "m", "--recipe", "nano"],
    ["train", "--out", "m", "--steps", "many"], ["capture", "nano-settles", "--out", "s", "--tokens", "first"],
    ["capture", "nano-settles", "--out", "s", "--tokens", ""],
    ["capture", "nano-settles", "--out", "s", "--tokens", "0:9:0"],
    ["capture", "nano-settles", "--out", "s", "--tokens", "0,,1"], ["quickstart", "--prompt"]], ids=" ".join)
def test_wrong_usage_exits_2_and_says_how(refused, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused(*arguments, code=2)
    assert error.startswith("usage: dynloop")
    assert "error: " in error
    assert not list(tmp_path.iterdir())


def test_positions_come_as_a_list_or_a_range(run, model_folder, tmp_path):
    for number, (text, expected) in enumerate({"0,5,-1": [0, 5, 95], "3:20:8": [3, 11, 19], "2:4": [2, 3],
                                               "-2:0": [94, 95], "7": [7]}.items()):
        code, _, error = run("capture", model_folder, "--out", tmp_path / str(number), "--recurrences", 1,
                             f"--tokens={text}")
        assert code == 0, error
        assert sorted(set(open_store(tmp_path / str(number)).labels["token"])) == expected


# ---- what is refused

def test_a_missing_store_or_recording(refused, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        assert "no dynloop store at" in refused("info", path)
    assert "no recording" in refused("analyze", tmp_path / "none", "--report", tmp_path / "r")
    assert "no dynloop store at" in refused("analyze", tmp_path, "--report", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("name", "content", "words"), [
    (None, None, "Name a text file with one prompt a line"),
    ("p.txt", b"", "with at least one"), ("p.txt", b"\n \n", "with at least one"),
    ("p.txt", b"\xff\xfe", "Prompts are UTF-8 text, one a line, or a .json list"),
    ("p.json", b"[", "cannot be read"), ("p.json", b"{}", "must hold a list of texts or of lists of token numbers"),
    ("p.json", b"[1, 2]", "must hold a list"), ("p.json", b"[[1.5]]", "must hold a list"),
    ("p.json", b"[]", "with at least one"), ("p.json", b'["a", ""]', "prompt 1 is empty"),
])
def test_prompts_that_cannot_be_read(refused, model_folder, tmp_path, name, content, words):
    path = tmp_path / (name or "none.txt")
    if content is not None:
        path.write_bytes(content)
    assert words in refused("capture", model_folder, "--out", tmp_path / "s", "--prompts", path)
    assert not (tmp_path / "s").exists()


def test_prompts_are_lines_of_text_or_a_json_list(run, model_folder, tmp_path):
    (tmp_path / "p.txt").write_text("def f():\n\n  x = 'é'\n", encoding="utf-8")
    (tmp_path / "p.json").write_text(json.dumps(["def f():", list("  x = 'é'".encode())]))
    hashes = set()
    for name in ("p.txt", "p.json"):
        code, _, error = run("capture", model_folder, "--out", tmp_path / name[2:], "--prompts", tmp_path / name,
                             "--recurrences", 2)
        assert code == 0, error
        hashes.add(open_store(tmp_path / name[2:]).header["prompts_sha256"])
    assert len(hashes) == 1


def test_models_devices_and_positions_that_do_not_exist(refused, model_folder, tmp_path):
    out = "--out", tmp_path / "s"
    assert "no model 'nano-setles'" in refused("capture", "nano-setles", *out)
    assert "no model.json in" in refused("capture", tmp_path, *out)
    assert "device 'cuda:77' cannot be used here" in refused("capture", model_folder, *out, "--device", "cuda:77")
    assert "device 'gpu' cannot be used here" in refused("train", *out, "--device", "gpu")
    assert "do not all exist in prompt 0, which has 96" in refused("capture", model_folder, *out, "--tokens", "96")
    assert "do not all exist" in refused("capture", model_folder, *out, "--tokens", "5:2")
    assert "layers must be among 1 to 2; got [3]" in refused("capture", model_folder, *out, "--layers", "3")
    assert "n_recurrences must be at least 1" in refused("capture", model_folder, *out, "--recurrences", 0)
    assert "batch_size must be at least 1" in refused("capture", model_folder, *out, "--batch-size", 0)
    assert not (tmp_path / "s").exists()


def test_a_training_that_cannot_work(refused, tmp_path):
    out = "--out", tmp_path / "m"
    assert "no folder" in refused("train", *out, "--corpus", tmp_path / "none")
    (tmp_path / "few").mkdir()
    assert "bytes of text to train on" in refused("train", *out, "--corpus", tmp_path / "few")
    assert "width must be a multiple of 2 * n_heads" in refused("train", *out, "--width", 20, "--n-heads", 3)
    assert "never sees the input" in refused("train", *out, "--initial-state", "random", "--injection", "none")
    assert "control has no recurrence" in refused("train", *out, "--no-looped")
    assert "--threads must be at least 1" in refused("train", *out, "--threads", 0)
    assert "learning_rate must be a positive number" in refused("train", *out, "--learning-rate", "nan")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "is a tensor file: say what its axes are, for example --axes prompt,token,recurrence,feature"),
    (["--axes", "prompt,recurrence,feature"], "has 4 axes, shape (3, 2, 20, 5); got 3 axis names"),
    (["--axes", "prompt,token,time,feature"], "with 'recurrence' and 'feature' among them"),
    (["--axes", "text,token,recurrence,feature"], "no label 'prompt' to resample; it has text, token, model. Name one"),
    (["--axes", "prompt,token,recurrence,feature", "--resample", "seed"], "no label 'seed' to resample"),
    (["--axes", "prompt,token,recurrence,feature", "--key", "x"], "leave key out"),
    (["--axes", "prompt,token,recurrence,feature", "--resolution", "2"], "between 0 and 1"),
    (["--axes", "prompt,token,recurrence,feature", "--resamples", "5"], "must be a whole number of at least 100"),
])
def test_tensor_files_without_or_with_wrong_names(refused, tmp_path, rng, arguments, words):
    np.save(tmp_path / "x.npy", rng.normal(size=(3, 2, 20, 5)))
    assert words in refused("analyze", tmp_path / "x.npy", "--report", tmp_path / "r", *arguments)
    assert not (tmp_path / "r").exists()


def test_tensor_files_that_are_none(refused, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "x.csv").write_text("1,2")
    for name, words in (("x.npy", "EOF"), ("x.csv", "tensors are read from .pt, .pth, .npy")):
        assert words in refused("analyze", tmp_path / name, "--axes", "prompt,recurrence,feature", "--report", "r")


def test_a_report_folder_that_holds_other_things(refused, store_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds something else than a report" in refused("analyze", store_folder, "--report", tmp_path)
    assert tree(tmp_path) == {"thesis.tex": b"years of work"}


def test_an_unfinished_store_is_shown_and_not_analysed(run, refused, tmp_path, rng):
    StoreWriter(tmp_path / "s", {}).write_states("a", torch.zeros(4, 20, 5), {"prompt": (0, range(4))})
    code, out, _ = run("info", tmp_path / "s")
    assert code == 0
    assert "UNFINISHED; run the same capture again to go on" in out
    assert "is unfinished: its capture was" in refused("analyze", tmp_path / "s", "--report", tmp_path / "r")
    assert not (tmp_path / "r").exists()
    StoreWriter(tmp_path / "empty", {})
    assert "holds no states yet" in refused("info", tmp_path / "empty")


def test_a_damaged_shard_is_named(run, refused, store_folder, tmp_path):
    shutil.copytree(store_folder, tmp_path / "s")
    shard = next((tmp_path / "s" / "shards").glob("*states*"))
    content = bytearray(shard.read_bytes())
    content[-9] ^= 4
    shard.write_bytes(content)
    assert run("info", tmp_path / "s")[0] == 0  # sizes alone
    code, out, error = run("info", tmp_path / "s", "--verify")
    assert (code, f"dynloop: shard {shard.name} " in error, "every shard has" in out) == (1, True, False)
    assert f"shard {shard.name} " in refused("analyze", tmp_path / "s", "--report", tmp_path / "r")
    shard.write_bytes(content[:-1])
    assert f"shard {shard.name} " in refused("info", tmp_path / "s")
    shard.unlink()
    assert f"shard {shard.name} " in refused("analyze", tmp_path / "s", "--report", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_other_settings_for_the_same_store(refused, store_folder, model_folder):
    before = tree(store_folder)
    assert "made with other settings (they differ in batch_size, n_prompts, n_recurrences" in refused(
        "capture", model_folder, "--out", store_folder, "--recurrences", 21, "--batch-size", 4)
    assert tree(store_folder) == before


@pytest.mark.parametrize("number", ["1", "65", "-3"])
def test_quickstart_has_64_prompts(refused, tmp_path, number):
    assert f"--prompts must lie between 2 and 64; got {number}" in refused(
        "quickstart", "--out", tmp_path / "q", f"--prompts={number}")
    assert not (tmp_path / "q").exists()


# ---- interruptions and full disks

def test_an_interruption_exits_130_and_the_same_command_goes_on(run, monkeypatch, model_folder, few_prompts, tmp_path):
    command = ["capture", model_folder, "--prompts", few_prompts, "--recurrences", 3, "--batch-size", 1]
    assert run(*command, "--out", tmp_path / "undisturbed")[0] == 0
    runs, real = [], capture_module._run

    def interrupted(*given):
        runs.append(given)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "_run", interrupted)
        code, _, error = run(*command, "--out", tmp_path / "s")
    assert code == 130
    assert "dynloop: interrupted. What was finished is kept; the same command goes on from there." in error
    assert "Traceback" not in error
    assert not open_store(tmp_path / "s").complete
    assert run(*command, "--out", tmp_path / "s")[0] == 0
    assert tree(tmp_path / "s") == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_a_full_disk_is_said_and_the_same_command_goes_on(run, refused, monkeypatch, model_folder, few_prompts,
                                                          tmp_path, number):
    command = ["capture", model_folder, "--prompts", few_prompts, "--recurrences", 3, "--batch-size", 1]
    assert run(*command, "--out", tmp_path / "undisturbed")[0] == 0
    for call in (2, 5, 9):
        calls, real = [], os.fsync

        def full(descriptor, call=call, calls=calls, real=real):
            calls.append(descriptor)
            if len(calls) == call:
                raise OSError(number, os.strerror(number), str(tmp_path / "s"))
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            error = refused(*command, "--out", tmp_path / "s")
        assert "the disk is full while writing" in error
        assert "what was finished is kept, and the same command goes on from there" in error
    assert run(*command, "--out", tmp_path / "s")[0] == 0
    assert tree(tmp_path / "s") == tree(tmp_path / "undisturbed")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_store_that_the_disk_refused_goes_on_to_the_same_bytes(run, model_folder, few_prompts, tmp_path):
    command = ["capture", str(model_folder), "--prompts", str(few_prompts), "--recurrences", "6", "--batch-size", "1"]
    assert run(*command, "--out", tmp_path / "undisturbed")[0] == 0
    largest = max(map(len, tree(tmp_path / "undisturbed").values()))
    done = python("import resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
                  "from dynloop.cli import main; sys.exit(main(sys.argv[2:]))",
                  largest - 1, *command, "--out", tmp_path / "s")  # the largest shard finds no room
    assert done.returncode == 1
    with contextlib.suppress(StoreError):  # no states yet
        open_store(tmp_path / "s").verify()
    assert tree(tmp_path / "s") != tree(tmp_path / "undisturbed")
    assert run(*command, "--out", tmp_path / "s")[0] == 0
    assert tree(tmp_path / "s") == tree(tmp_path / "undisturbed")


def test_unexpected_refusals_can_be_traced(monkeypatch, tmp_path):
    monkeypatch.setenv("DYNLOOP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="must lie between"):
        main(["quickstart", "--prompts", "1", "--out", str(tmp_path / "q")])


# ---- from end to end

def test_train_capture_analyze_info(run, tmp_path):
    for number in range(30):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{number}.txt").write_text("for state in block: state = loop(state)\n" * 40)
    (tmp_path / "prompts.txt").write_text("for state in block\nstate = loop(state)\nin block: state\n")
    training = ["train", "--out", tmp_path / "tiny", "--corpus", tmp_path / "corpus", "--width", 16, "--n-heads", 2,
                "--steps", 6, "--length", 16, "--batch-size", 2, "--n-recurrences", 2, "--norm", "sandwich",
                "--no-loop-norm", "--seed", 3, "--threads", 1, "--monitor", 3, "--log-every", 2]
    code, out, error = run(*training)
    assert code == 0, error
    assert "Held-out loss in nats per byte by recurrences: " in out
    assert f"Next: dynloop capture {tmp_path / 'tiny'} --out STORE" in out
    assert dynloop.read_log(tmp_path / "tiny" / "monitor.jsonl")["step"].tolist() == [3, 6]
    record = json.loads((tmp_path / "tiny" / "model.json").read_text())
    assert (record["model"]["norm"], record["model"]["loop_norm"], record["training"]["seed"]) == ("sandwich", False, 3)
    assert run(*training)[0] == 0  # finished: nothing to do
    code, _, error = run(*training[:-1], 3)
    assert (code, "made with other settings" in error) == (1, True)

    code, out, error = run("capture", tmp_path / "tiny", "--prompts", tmp_path / "prompts.txt", "--recurrences", 30,
                           "--out", tmp_path / "store", "--tokens", "0,4,-1", "--layers", "1,2", "--seed", 5)
    assert code == 0, error
    assert "18 orbits of 30 steps in 16 dimensions" in out
    assert f"Next: dynloop analyze {tmp_path / 'store'} --report REPORT" in out

    code, out, error = run("analyze", tmp_path / "store", "--report", tmp_path / "report", "--resamples", 200)
    assert code == 0, error
    assert "- tiny: " in out
    assert f"Report: {tmp_path / 'report' / 'report.html'}" in out
    assert {"report.html", "report.md", "report.json", "estimates.csv", "study.nc"} <= set(tree(tmp_path / "report"))
    assert run("analyze", tmp_path / "store", "--report", tmp_path / "report", "--resamples", 200, "--format",
               "json")[0] == 0  # again

    code, out, error = run("info", tmp_path / "store", "--verify")
    assert code == 0, error
    for words in ("complete", "18 orbits of 30 steps in 16 dimensions (F32)", "label layer: 1, 2", "seed: 5",
                  "label prompt: 0, 1, 2", "label model: tiny", record["sha256"],
                  "every shard has the checksum of the manifest"):
        assert words in out


def test_a_store_saved_from_an_array_is_analysed_too(run, tmp_path, decaying):
    save(decaying, tmp_path / "s")
    code, out, error = run("analyze", tmp_path / "s", "--report", tmp_path / "r", "--resamples", 100, "--format", "csv")
    assert code == 0, error
    assert "all 30 tokens of 6 prompts come to rest" in out


def test_the_formats_of_a_report_are_chosen(run, tmp_path, decaying):
    save(decaying, tmp_path / "s")
    code, _, error = run("analyze", tmp_path / "s", "--report", tmp_path / "r", "--resamples", 100, "--format",
                         "json,latex", "--title", "Mine")
    assert code == 0, error
    found = set(tree(tmp_path / "r"))
    assert {"report.json", "tables/rates.tex", "study.nc"} <= found
    assert not {name for name in found if name.endswith((".html", ".md", ".csv"))}
    assert json.loads((tmp_path / "r" / "report.json").read_text())["title"] == "Mine"
    code, _, error = run("analyze", tmp_path / "s", "--report", tmp_path / "r", "--resamples", 100, "--format", "md")
    assert code == 0, error
    ever = {"report.json", "tables/rates.tex", "report.md"}
    assert set(tree(tmp_path / "r")) & ever == {"report.md"}  # none is stale


def test_runs_are_compared_from_stores_studies_and_reports(run, refused, tmp_path, decaying):
    save(decaying, tmp_path / "s")
    slower = decaying.replace(states=decaying.states[:, 40:],
                              labels={**decaying.labels, "model": np.repeat("slow", 30)})
    save(slower, tmp_path / "slow")
    command = "--resamples", 100, "--format", "json"
    assert run("analyze", tmp_path / "slow", "--report", tmp_path / "slow-report", *command)[0] == 0
    code, out, error = run("report", tmp_path / "s", tmp_path / "slow-report", tmp_path / "slow-report" / "study.nc",
                           "--out", tmp_path / "r", *command)
    assert code == 0, error
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == ["- recording 1", "- slow (1)", "- slow (2)"]
    sections = {s["name"]: s for s in json.loads((tmp_path / "r" / "report.json").read_text())["sections"]}
    rows = sections["comparisons"]["tables"][0]["rows"]
    assert {row[1]["text"] for row in rows} <= {"slow (1)", "slow (2)"}
    assert rows[0][2:] == rows[1][2:]  # one run, twice
    assert "no run" in refused("report", tmp_path / "none", "--out", tmp_path / "q")
    assert "holds neither a store" in refused("report", tmp_path, "--out", tmp_path / "q")
    (tmp_path / "x.npy").write_bytes(b"")
    assert "is no study" in refused("report", tmp_path / "x.npy", "--out", tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_an_untrained_control_is_captured_and_found(run, refused, model_folder, few_prompts, tmp_path):
    command = "capture", model_folder, "--recurrences", 20, "--tokens", "0:96:48", "--prompts", few_prompts
    for name, more in (("a", ()), ("b", ("--untrained",)), ("c", ("--untrained", 5))):
        code, _, error = run(*command, "--out", tmp_path / name, *more)
        assert code == 0, error
    stores = {name: open_store(tmp_path / name) for name in "abc"}
    assert [set(stores[name].labels["model"]) for name in "abc"] == [{"tiny"}, {"tiny-untrained"}, {"tiny-untrained"}]
    assert stores["c"].header["model"]["untrained"] == {"of": "tiny", "seed": 5,
                                                        "sha256": stores["a"].header["model"]["sha256"]}
    assert len({store.header["model"]["sha256"] for store in stores.values()}) == 2  # tiny was never trained: seed 0
    assert "whole number from 0" in refused(*command, "--out", tmp_path / "d", "--untrained=-1")
    code, out, error = run("report", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "r", "--resamples", 100,
                           "--format", "md")
    assert code == 0, error
    assert "- tiny-untrained, the untrained control of tiny: still moving " in out
    assert "**Trained and untrained, last layer**" in (tmp_path / "r" / "report.md").read_text()


@pytest.mark.slow  # tox runs the quick start itself, from the wheel
def test_quickstart_writes_the_report_prints_three_findings_and_reuses_its_stores(run, monkeypatch, tmp_path):
    command = "quickstart", "--out", tmp_path / "q", "--prompts", 4, "--recurrences", 40
    code, out, error = run(*command)
    assert code == 0, error
    lines = out.splitlines()
    assert lines[0] == "Findings:"
    names = "nano-settles", "nano-random-start", "nano-drifts", "nano-settles-untrained"
    for line, name in zip(lines[1:5], names, strict=True):
        assert line.startswith(f"  - {name}: ")
    assert lines[5].startswith("  - nano-settles-untrained, the untrained control of nano-settles: still moving ")
    assert f"Report: {tmp_path / 'q' / 'report' / 'report.html'}" in lines
    assert (tmp_path / "q" / "report" / "report.html").stat().st_size > 50_000
    stores = [open_store(folder) for folder in (tmp_path / "q" / "stores").iterdir()]
    assert len(stores) == 4
    for store in stores:
        assert store.complete
        assert (store.n_steps, set(store.labels["prompt"])) == (40, {0, 1, 2, 3})

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "q" / "stores").rglob("*.safetensors")}
    monkeypatch.setattr(capture_module, "_run", None)  # would fail if anything were captured again
    code, again, error = run(*command)
    assert code == 0, error
    assert again.splitlines()[:6] == lines[:6]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "q" / "stores").rglob("*.safetensors")} == before


def test_quickstart_refuses_stores_of_other_settings(refused, tmp_path):
    out = tmp_path / "q" / "stores" / "nano-settles"
    dynloop.capture("nano-settles", shipped_prompts()[:2], out=out, n_recurrences=3)
    assert "made with other settings" in refused("quickstart", "--out", tmp_path / "q", "--prompts", 2)
