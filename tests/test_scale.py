"""Many workers give the answers of the plain loop, bit for bit: nothing lost, nothing doubled, whatever happens."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scale_analyzers
import torch

import dynloop.measuring
import dynloop.tasks
from dynloop import (
    Measurement,
    Outcome,
    Trajectories,
    analyzer,
    contraction_rate,
    measure,
    open_store,
    successive_distance,
)
from dynloop.buffers import Buffers
from dynloop.measuring import _stretches, _tasks
from dynloop.store import StoreWriter
from dynloop.tasks import MeasureError

N_SHARDS, PER_SHARD, N_STEPS, DIM = 12, 4, 24, 8
ANALYZERS = [functools.partial(successive_distance, metric="relative"), scale_analyzers.across_layers]


def stored(orbits, folder, per_shard):
    """A store whose shards hold a few orbits each."""
    with StoreWriter(folder, {"resolution": orbits.resolution}) as writer:
        for number, first in enumerate(range(0, len(orbits), per_shard)):
            part = orbits[first:first + per_shard]
            writer.write_states(f"s{number:03d}", part.states, {n: (0, v) for n, v in part.labels.items()})
        return writer.finish()


def recording(n_orbits=N_SHARDS * PER_SHARD, seed=0):
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.4, 0.9, n_orbits)
    states = rng.normal(size=(n_orbits, 1, DIM)) + rates[:, None, None] ** np.arange(N_STEPS)[None, :, None] \
        * rng.normal(size=(n_orbits, 1, DIM))
    states[5, 11:] = np.nan
    return Trajectories(states, labels={"orbit": np.arange(n_orbits), "prompt": np.arange(n_orbits) // 4,
                                        "layer": np.arange(n_orbits) // 2 % 2, "token": np.arange(n_orbits) % 2})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve shards of four orbits: a prompt, two layers, two tokens."""
    return stored(recording(), tmp_path_factory.mktemp("scale") / "store", PER_SHARD)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """A task is one shard here, or what its groups need."""
    monkeypatch.setattr(dynloop.measuring, "TASK_BYTES", (1, 1))


def assert_bitwise(got, wanted):
    assert len(got) == len(wanted)
    for own, other in zip(got, wanted, strict=True):
        assert (own.name, dict(own.settings), dict(own.units)) == (other.name, dict(other.settings), dict(other.units))
        assert own.outcomes.tolist() == other.outcomes.tolist()
        for what in ("variables", "labels"):
            ours, theirs = getattr(own, what), getattr(other, what)
            assert list(ours) == list(theirs)
            for name, values in theirs.items():
                assert ours[name].dtype == values.dtype, name
                assert ours[name].tobytes() == values.tobytes(), name


@pytest.fixture(scope="module")
def plain(store):
    return measure(store, ANALYZERS)


NOTHING, SOME = None, {"prompt": [0, 3, 11], "token": 0}


@pytest.mark.parametrize(("options", "wanted"), [
    ({"workers": 1}, NOTHING), ({"workers": 2}, {"layer": 1}), ({"workers": 3}, SOME), ({"client": "threads"}, NOTHING),
    ({"client": "processes"}, SOME), ({"resume": "kept"}, SOME), ({"workers": 2, "resume": "kept"}, {"layer": 1})],
    ids=str)
def test_workers_give_what_the_plain_loop_gives(options, wanted, store, tmp_path):
    options = dict(options)
    if "resume" in options:
        options["resume"] = tmp_path / "kept"
    makers = {"threads": lambda: ThreadPoolExecutor(2), "processes": lambda: ProcessPoolExecutor(
        1, mp_context=__import__("multiprocessing").get_context("forkserver"))}
    if "client" in options:
        with makers[options["client"]]() as options["client"]:
            got = measure(store, ANALYZERS, select=wanted, **options)
    else:
        got = measure(store, ANALYZERS, select=wanted, **options)
    assert_bitwise(got, measure(store, ANALYZERS, select=wanted))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forks_do_not_write_into_each_others_buffers():
    """They come out of a pool of memory that was there before the fork."""
    import multiprocessing

    buffers = Buffers()
    view = buffers.view(4096)
    view[:] = 7
    child = multiprocessing.get_context("fork").Process(target=view.fill, args=(9,))
    child.start()
    child.join()
    assert (view == 7).all()


def test_workers_that_cannot_be_forks_give_the_same(store):
    """Here is a second thread, which might hold a lock while this process is copied."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not dynloop.tasks._may_fork()
        wanted = measure(store, [successive_distance, contraction_rate])
        assert_bitwise(measure(store, [successive_distance, contraction_rate], workers=2), wanted)
    finally:
        stop.set()
        thread.join()


class Backwards(Executor):
    """Runs what it is given in the reverse order: the first comes last."""

    def __init__(self):
        self.calls, self.pool = [], ThreadPoolExecutor(1)
        self.due = threading.Timer(0.2, self.run)
        self.due.start()

    def submit(self, function, /, *arguments, **named):
        from concurrent.futures import Future

        self.calls.append((Future(), functools.partial(function, *arguments, **named)))
        return self.calls[-1][0]

    def run(self):
        for future, call in reversed(self.calls):
            future.set_result(call())


def test_the_order_in_which_answers_come_does_not_matter(store, plain):
    assert_bitwise(measure(store, ANALYZERS, client=Backwards()), plain)


def test_threads_measure_trajectories_in_memory(monkeypatch):
    orbits = recording()
    one = 4 * N_STEPS * N_STEPS * 5  # five orbits
    monkeypatch.setattr(Trajectories, "chunks", functools.partialmethod(Trajectories.chunks, max_bytes=one))
    shuffled = orbits[np.random.default_rng(3).permutation(len(orbits))]
    for source, wanted in ((orbits, None), (shuffled, {"layer": [1]}), (shuffled, None)):
        assert_bitwise(measure(source, ANALYZERS, workers=3, select=wanted), measure(source, ANALYZERS, select=wanted))
    before = torch.get_num_threads()
    measure(orbits, [successive_distance], workers=2)
    assert torch.get_num_threads() == before


def test_workers_have_one_thread_and_are_other_processes(store):
    got, = measure(store, [functools.partial(scale_analyzers.process)], workers=2)
    assert os.getpid() not in got["pid"]
    assert (got["threads"] == 1).all()


@pytest.mark.parametrize("per_shard", [1, 3, 5, 48])
@pytest.mark.parametrize("held", [2**28, 0])
@pytest.mark.parametrize("order", ["captured", "layers outermost", "shuffled"])
def test_groups_across_shards_come_in_one_task(per_shard, held, order, tmp_path, monkeypatch):
    monkeypatch.setattr(dynloop.measuring, "HELD_BYTES", held)
    orbits = recording()
    orbits = orbits[{"captured": np.arange(48), "layers outermost": np.argsort(orbits.labels["layer"], kind="stable"),
                     "shuffled": np.random.default_rng(1).permutation(48)}[order]]
    orbits = orbits.replace(labels={k: v for k, v in orbits.labels.items() if k != "orbit"})
    store = stored(orbits, tmp_path / "store", per_shard)
    analyzers = [scale_analyzers.across_layers, successive_distance]
    tasks = _tasks(store, analyzers, {}, keyed=False)
    for task in tasks:
        labels = task.arguments[0].labels
        groups = list(zip(labels["prompt"], labels["token"], strict=True))
        assert all(groups.count(group) == 2 for group in groups)
    assert sum(task.size for task in tasks) == 48
    if order == "captured" and per_shard in (1, 3):
        assert len(tasks) == 12 if per_shard == 1 else len(tasks) == 4
    got = measure(store, analyzers, client=Backwards())
    assert (got[0]["layers"] == 2).all()
    assert_bitwise(got, measure(store, analyzers))
    assert_bitwise(measure(store, analyzers, resume=tmp_path / "kept", select={"prompt": [2, 3, 9]}),
                   measure(store, analyzers, select={"prompt": [2, 3, 9]}))


def test_every_orbit_is_measured_exactly_once(store, tmp_path):
    got, = measure(store, [functools.partial(scale_analyzers.counting, folder=str(tmp_path))], workers=2)
    assert got.labels["orbit"].tolist() == list(range(48))
    assert [scale_analyzers.marks(tmp_path, f"orbit{i}") for i in range(48)] == [1] * 48


def test_tasks_are_large_enough_and_depend_on_the_store_alone(store, monkeypatch):
    monkeypatch.setattr(dynloop.measuring, "TASK_BYTES", (64 * 2**20, 256 * 2**20))
    assert len(_tasks(store, ANALYZERS, {}, keyed=False)) == 1  # a few kilobytes
    sizes = [line["bytes"] for line in store.shards]
    monkeypatch.setattr(dynloop.measuring, "TASK_BYTES", (3 * max(sizes), 2**28))
    tasks = _tasks(store, ANALYZERS, {}, keyed=False)
    assert [task.size for task in tasks] == [12, 12, 12, 12]
    assert tasks[1].name == "s003 to s005"
    assert [task.key for task in tasks] == [task.key for task in _tasks(store, ANALYZERS, {}, keyed=False)]


def test_a_shard_that_fails_once_is_tried_again(store, plain, tmp_path):
    once = functools.partial(scale_analyzers.failing, folder=str(tmp_path), orbit=17)
    got = measure(store, [*ANALYZERS, once], workers=2)
    assert_bitwise(got[:-1], plain)
    assert scale_analyzers.marks(tmp_path, "failing") == 2
    assert got[-1].labels["orbit"].tolist() == list(range(48))


@pytest.mark.parametrize("retries", [0, 2])
def test_a_shard_that_always_fails_is_named(retries, store, tmp_path):
    always = functools.partial(scale_analyzers.failing, folder=str(tmp_path), orbit=17, times=99)
    with pytest.raises(MeasureError) as caught:
        measure(store, [successive_distance, always], workers=2, retries=retries)
    words = str(caught.value)
    assert "1 of 12 tasks failed" in words
    assert ("tried 3 times" in words) == (retries == 2)
    assert "s004: analyzer failing: ArithmeticError: this orbit is too hard" in words
    assert "Give resume=FOLDER to keep what is finished" in words
    assert any("Traceback" in note for note in caught.value.__notes__)
    assert scale_analyzers.marks(tmp_path, "failing") == retries + 1


def test_a_damaged_shard_is_named(tmp_path):
    store = stored(recording(), tmp_path / "store", PER_SHARD)
    path = tmp_path / "store" / "shards" / "s007.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)
    with pytest.raises(MeasureError, match=r"s007: DamagedShardError: shard s007.safetensors is damaged"):
        measure(open_store(store.folder), [successive_distance], workers=1, retries=0)


def test_a_worker_killed_in_mid_run_loses_and_doubles_nothing(store, plain, tmp_path):
    killing = functools.partial(scale_analyzers.killing, folder=str(tmp_path), orbit=22)
    got = measure(store, [*ANALYZERS, killing], workers=2)
    assert scale_analyzers.marks(tmp_path, "killing") == 2
    assert_bitwise(got[:-1], plain)
    assert got[-1].labels["orbit"].tolist() == list(range(48))


def test_a_task_that_always_kills_its_worker_is_named_and_the_others_are_innocent(store, tmp_path):
    killing = functools.partial(scale_analyzers.killing, folder=str(tmp_path), orbit=22, times=99)
    with pytest.raises(MeasureError) as caught:
        measure(store, [killing], workers=2, retries=1)
    assert "1 of 12 tasks failed, tried 2 times:\n  s005: its worker ended abruptly" in str(caught.value)


def test_a_pool_of_somebody_else_that_breaks_is_not_replaced(store, tmp_path):
    import multiprocessing

    killing = functools.partial(scale_analyzers.killing, folder=str(tmp_path), orbit=22, times=99)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool, \
            pytest.raises(MeasureError, match="s005: its worker ended abruptly"):
        measure(store, [killing], client=pool)


def test_an_interrupted_run_goes_on_without_measuring_anything_again(store, tmp_path):
    (tmp_path / "marks").mkdir()
    counting = functools.partial(scale_analyzers.counting, folder=str(tmp_path / "marks"))
    broken = functools.partial(scale_analyzers.failing, folder=str(tmp_path / "marks"), orbit=30, times=1)
    with pytest.raises(MeasureError, match=r"What was finished is kept in .*kept; the same call goes on from there"):
        measure(store, [counting, broken], workers=2, resume=tmp_path / "kept", retries=0)
    finished = len(list((tmp_path / "kept").iterdir()))
    assert 5 <= finished <= 11
    got = measure(store, [counting, broken], workers=1, resume=tmp_path / "kept", retries=0)
    assert [scale_analyzers.marks(tmp_path / "marks", f"orbit{i}") for i in range(48)] == \
        [2 if i in range(28, 32) else 1 for i in range(48)]
    assert len(list((tmp_path / "kept").iterdir())) == 12
    assert_bitwise(measure(store, [counting, broken], resume=tmp_path / "kept"), got)
    assert sum(1 for _ in (tmp_path / "marks").glob("orbit*")) == 52
    assert_bitwise(got, [scale_analyzers.first_value(recording()), scale_analyzers.first_value(recording())])


def test_a_run_killed_by_the_keyboard_keeps_what_was_finished(store, tmp_path, monkeypatch):
    def third(one, two, three, *, seen=itertools.count()):  # noqa: B008
        if next(seen) == 3:
            raise KeyboardInterrupt
        return original(one, two, three)

    original = dynloop.measuring._measure_shards
    monkeypatch.setattr(dynloop.measuring, "_measure_shards", third)
    with pytest.raises(KeyboardInterrupt):
        measure(store, ANALYZERS, resume=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 3


def other_source(trajectories):
    return scale_analyzers.first_value(trajectories)


def test_kept_answers_serve_the_same_question_alone(store, tmp_path):
    (tmp_path / "marks").mkdir()

    def calls(**options):
        before = len(list((tmp_path / "marks").iterdir()))
        counting = functools.partial(scale_analyzers.counting, folder=str(tmp_path / "marks"),
                                     **options.pop("settings", {}))
        measure(options.pop("source", store), [counting, *options.pop("others", [])], resume=tmp_path / "kept",
                **options)
        return len(list((tmp_path / "marks").iterdir())) - before

    assert calls() == 48
    assert calls() == 0
    assert calls(workers=1) == 0
    assert calls(settings={"seconds": 0.001}) == 48
    assert calls(others=[successive_distance]) == 48
    assert calls(select={"layer": 1}) == 24
    other = stored(recording(seed=1), tmp_path / "other", PER_SHARD)
    assert calls(source=other) == 48
    moved = tmp_path / "moved"
    (tmp_path / "other").rename(moved)
    assert calls(source=open_store(moved)) == 0


def scaled(trajectories, *, by=1.0, weights=None):
    """Its settings, whatever they are, decide the answers."""
    first = trajectories.states[:, 0, 0].double().numpy() * by
    first = first if weights is None else first + weights.sum()
    return Measurement("scaled", {"value": first}, [Outcome.FOUND] * len(trajectories), labels=trajectories.labels)


def closing_over(by):
    return lambda trajectories: scaled(trajectories, by=by)


def with_default(by):
    def inner(trajectories, *, by=by):
        return scaled(trajectories, by=by)
    return inner


def made_analyzer(by):
    @analyzer
    def inner(trajectories, *, of=1):
        return scaled(trajectories, by=by * of)
    return inner


def with_weights(by):
    weights = np.zeros(5000)  # whose repr leaves out the middle
    weights[2500] = by
    return functools.partial(scaled, weights=weights)


@pytest.mark.parametrize("make", [closing_over, with_default, made_analyzer, with_weights])
def test_what_an_analyzer_holds_decides_whether_an_answer_is_used_again(make, store, tmp_path):
    for by in (2.0, 3.0):
        got = measure(store, [make(by)], resume=tmp_path / "kept")
        assert_bitwise(got, measure(store, [make(by)]))
    assert len(list((tmp_path / "kept").iterdir())) == 24
    assert_bitwise(measure(store, [make(3.0)], resume=tmp_path / "kept"), got)
    assert len(list((tmp_path / "kept").iterdir())) == 24


def test_an_analyzer_that_calls_itself_has_an_identity(store, tmp_path):
    def again(trajectories, *, depth=2):
        return again(trajectories, depth=depth - 1) if depth else scaled(trajectories)

    assert_bitwise(measure(store, [again], resume=tmp_path / "kept"), measure(store, [scaled]))


def test_code_without_a_source_is_told_apart_by_all_of_it():
    spaces = []
    for name in ("minimum", "maximum"):
        spaces.append({"__name__": "typed", "np": np})
        exec(f"def f(t): return np.{name}(t, 1)", spaces[-1])
    first, second = (dynloop.measuring._identity(space["f"]) for space in spaces)
    assert first != second


def test_what_cannot_be_told_apart_is_refused_with_resume_alone(store, tmp_path):
    held = threading.Lock()
    holding = functools.partial(scaled, weights=held)
    with pytest.raises(TypeError, match=r"analyzer scaled holds <unlocked.*Measure without resume"):
        measure(store, [holding], resume=tmp_path / "kept")


def test_an_answer_that_is_no_measurement_is_named(store):
    with pytest.raises(TypeError, match="analyzer nothing must return a Measurement; got NoneType"):
        measure(store, [nothing])
    with pytest.raises(MeasureError, match=r"orbits 0 to 47: analyzer nothing: TypeError.*\nOf orbits in memory"):
        measure(recording(), [nothing], workers=1, retries=0)


def nothing(trajectories):
    return None


_SCRIPT = """
import sys, threading, time
import dynloop.measuring
from dynloop import measure, open_store, successive_distance

dynloop.measuring.TASK_BYTES = 1, 1

def slow(trajectories):
    open(sys.argv[2] + "/begun", "w").close()
    time.sleep(0.4)
    return successive_distance(trajectories)

if __name__ == "__main__":
    if sys.argv[3] == "no fork":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    {call}
"""


def _children(pid):
    own = [int(line) for path in Path(f"/proc/{pid}/task").glob("*/children") for line in path.read_text().split()]
    return own + [below for one in own for below in _children(one)]


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow),
                                    pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL], ids=str)
def test_who_measures_may_be_killed_and_no_worker_stays_behind(number, store, tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT.format(call="measure(open_store(sys.argv[1]), [slow], workers=2)"))
    with subprocess.Popen([sys.executable, tmp_path / "script.py", str(store.folder), str(tmp_path), "fork"],
                          stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < end:
            time.sleep(0.05)
        children = _children(process.pid)
        assert len(children) >= 2
        process.send_signal(number)
        assert process.wait(60) != 0
        end = time.monotonic() + 20
        while any(map(_lives, children)) and time.monotonic() < end:
            time.sleep(0.05)
        left = [pid for pid in children if _lives(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left


@pytest.mark.parametrize("how", ["fork", pytest.param("no fork", marks=pytest.mark.slow)])
def test_a_program_from_standard_input_has_workers_for_what_can_be_imported(how, store, tmp_path):
    call = """
    print(measure(open_store(sys.argv[1]), [successive_distance], workers=2)[0].n_orbits, __file__)
    try:
        measure(open_store(sys.argv[1]), [slow], workers=2)
    except TypeError as error:
        print(error)"""
    done = subprocess.run([sys.executable, "-", str(store.folder), str(tmp_path), how], capture_output=True, text=True,
                          input=_SCRIPT.format(call=call), check=True)
    first, second = done.stdout.splitlines()
    assert first == "48 <stdin>"
    assert "analyzer slow was typed in here, and other processes cannot import it" in second
    assert "Traceback" not in done.stderr


def test_a_damaged_answer_is_measured_again(store, plain, tmp_path):
    measure(store, ANALYZERS, resume=tmp_path / "kept")
    one, two = sorted((tmp_path / "kept").iterdir())[:2]
    one.write_bytes(one.read_bytes()[:700])
    two.write_bytes(b"")
    assert_bitwise(measure(store, ANALYZERS, resume=tmp_path / "kept"), plain)
    assert one.stat().st_size > 700


@pytest.mark.parametrize(("options", "kind", "words"), [
    ({"workers": 0}, ValueError, "workers must be how many processes run on this machine, at least 1; got 0"),
    ({"workers": 2.5}, ValueError, "workers must be"),
    ({"workers": 1, "client": ThreadPoolExecutor()}, ValueError, "give one of them"),
    ({"client": 3}, TypeError, "client must be a dask.distributed.Client or a concurrent.futures.Executor; got int"),
    ({"retries": 1}, ValueError, "retries go with workers, client or resume"),
    ({"retries": -1, "workers": 1}, ValueError, "retries must be how often")])
def test_settings_that_make_no_sense_are_refused(options, kind, words, store):
    with pytest.raises(kind, match=words):
        measure(store, ANALYZERS, **options)


def test_what_only_a_store_can_do_is_refused_for_trajectories(tmp_path):
    for options in ({"resume": tmp_path / "kept"}, {"client": ThreadPoolExecutor()}):
        with pytest.raises(TypeError, match=r"client and resume need a store.*save\(trajectories, folder\)"):
            measure(recording(), ANALYZERS, **options)


def test_analyzers_that_other_processes_cannot_import_are_refused(store, tmp_path):
    with pytest.raises(TypeError, match="analyzer <lambda> cannot be sent to other processes"):
        measure(store, [lambda t: scale_analyzers.first_value(t)], workers=1)
    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError, match="analyzer <lambda> cannot be sent"):
        measure(store, [lambda t: scale_analyzers.first_value(t)], client=pool)
    with pytest.raises(TypeError, match="resume needs analyzers that are functions"):
        measure(store, [type("Odd", (), {"__call__": lambda self, t: 1})()], resume=tmp_path / "kept")


def test_a_folder_of_something_else_is_refused(store, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds something else than finished answers \(notes.txt\)"):
        measure(store, ANALYZERS, resume=tmp_path)
    with pytest.raises(FileExistsError, match="is a file; finished answers are kept in a folder"):
        measure(store, ANALYZERS, resume=tmp_path / "notes.txt")


def test_what_is_not_there_is_refused_before_any_worker_starts(store, monkeypatch):
    monkeypatch.setattr(dynloop.tasks, "_processes", None)
    with pytest.raises(ValueError, match="no orbit has prompt=77"):
        measure(store, ANALYZERS, select={"prompt": 77}, workers=2)


def test_the_plain_loop_says_nothing_of_tasks(store):
    with pytest.raises(ArithmeticError, match="this orbit is too hard"):
        measure(store, [functools.partial(scale_analyzers.failing, folder=os.devnull and str(store.folder.parent),
                                          orbit=3, times=9)])


def test_stretches_cover_every_wanted_orbit_once(store):
    for wanted in ({}, {"prompt": [1, 2, 9]}, {"layer": 0}):
        for together in ((), ("layer",), ("prompt",), ("token", "prompt", "orbit")):
            stretches = _stretches(store, wanted, together)
            covered = [range(own.first, own.first + own.n_orbits) for own in stretches]
            total = int(np.all([np.isin(store.labels[n], v) for n, v in wanted.items()] or [np.ones(48)], axis=0).sum())
            assert list(itertools.chain(*covered)) == list(range(total))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_memory_of_a_worker_does_not_grow_with_shards_or_recording(workers, tmp_path, monkeypatch):
    """Shards of 256 MiB, 1 GiB in all, against one of 128 MiB; a chunk takes 16 MiB, and eight are enough to
    fill all that a worker uses at a time."""
    monkeypatch.setattr(dynloop.measuring, "TASK_BYTES", (64 * 2**20, 256 * 2**20))
    peaks = {}
    for name, shard_bytes, n_shards in (("small", 2**27, 1), ("large", 2**28 - 2**20, 4)):
        n_steps, dim = 64, 1024
        n = shard_bytes // (4 * n_steps * dim)
        with StoreWriter(tmp_path / name, {"resolution": 2.0**-23}) as writer:
            for shard in range(n_shards):
                states = torch.randn(n, n_steps, dim, generator=torch.Generator().manual_seed(shard))
                writer.write_states(f"s{shard}", states, {"orbit": (0, np.arange(n) + shard * n)})
                del states  # workers are forks: what this process holds, they are said to hold
            store = writer.finish()
        got = measure(store, [successive_distance, contraction_rate, scale_analyzers.peak_memory], workers=workers)[-1]
        peaks[name] = got["peak"].max()
    print({name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()})
    assert peaks["large"] - peaks["small"] < 2 * 2**24


# the threads of a cluster in this process end the use of forks, so its tests come last

@pytest.fixture(scope="module")
def cluster():
    """Two workers of dask on this machine, which dask starts again when they die."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                                      silence_logs=60) as made, distributed.Client(made) as client:
            yield client


def test_a_cluster_gives_what_the_plain_loop_gives(store, plain, cluster):
    assert_bitwise(measure(store, ANALYZERS, client=cluster), plain)
    got, = measure(store, [scale_analyzers.process], client=cluster)
    assert os.getpid() not in got["pid"]
    assert (got["threads"] == 1).all()


def test_a_cluster_names_what_fails(store, cluster, tmp_path):
    always = functools.partial(scale_analyzers.failing, folder=str(tmp_path), orbit=17, times=99)
    with pytest.raises(MeasureError, match=r"s004: analyzer failing: ArithmeticError: this orbit is too hard"):
        measure(store, [successive_distance, always], client=cluster, retries=1)
    assert scale_analyzers.marks(tmp_path, "failing") == 2


def test_a_worker_of_a_cluster_killed_in_mid_run_loses_and_doubles_nothing(store, plain, cluster, tmp_path):
    slow = functools.partial(scale_analyzers.counting, folder=str(tmp_path), seconds=0.15)
    before = set(cluster.run(os.getpid).values())

    def kill_one():
        while scale_analyzers.marks(tmp_path, "orbit0") + scale_analyzers.marks(tmp_path, "orbit4") == 0:
            time.sleep(0.02)
        os.kill(min(before), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    got = measure(store, [*ANALYZERS, slow], client=cluster)
    killer.join()
    assert_bitwise(got[:-1], plain)
    assert got[-1].labels["orbit"].tolist() == list(range(48))
    cluster.wait_for_workers(2, timeout=60)
    assert set(cluster.run(os.getpid).values()) != before
