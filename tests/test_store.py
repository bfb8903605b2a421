"""The store holds what was saved, commits by its manifest alone, and never hands out damaged bytes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import dynloop.store.store as store_module
from dynloop import Trajectories, contraction_rate, measure, open_store, save
from dynloop.store import DamagedShardError, Store, StoreError, StoreWriter

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
N, STEPS, DIM = 6, 6, 8
ORBIT = 4 * STEPS * DIM  # bytes of one float32 orbit


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raw(tensor):
    return tensor.contiguous().view(torch.uint8)


def shard(folder, number):
    return sorted((folder / "shards").glob("*.safetensors"))[number]


@pytest.fixture
def orbits(rng):
    return Trajectories(rng.normal(size=(N, STEPS, DIM)).astype("float32"),
                        labels={"prompt": np.arange(N) // 2, "token": np.arange(N) % 2})


@pytest.fixture
def three(tmp_path, monkeypatch, orbits):
    """A store of three shards with two orbits each."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 2 * ORBIT + ORBIT // 2)
    return save(orbits, tmp_path / "three").folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_was_saved_comes_back(tmp_path, rng, dtype):
    states = torch.tensor(rng.normal(size=(N, STEPS, DIM))).to(dtype)
    states[1, 5, 2], states[3, 0, 0], states[4, -1] = torch.nan, torch.inf, -torch.inf
    given = Trajectories(states, resolution=2.0**-7,
                         labels={"prompt": [0, 0, 1, 1, 2, 2], "model": ["a", "b"] * 3, "true": np.linspace(0, 1, N)})
    save(given, tmp_path / "s", provenance={"why": "a test", "nested": {"n": [1, 2]}})
    store = open_store(tmp_path / "s")
    back = store.trajectories()
    assert back.states.dtype == dtype
    assert torch.equal(raw(back.states), raw(states))  # bit for bit, NaN included
    assert back.lengths.tolist() == [STEPS, 5, STEPS, 0, STEPS - 1, STEPS]
    assert back.diverged.tolist() == [False, True, False, True, True, False]
    assert back.resolution == 2.0**-7
    assert {name: values.tolist() for name, values in back.labels.items()} == \
        {name: values.tolist() for name, values in given.labels.items()} == \
        {name: values.tolist() for name, values in store.labels.items()}
    assert (store.n_orbits, store.n_steps, store.dim, store.complete) == (N, STEPS, DIM, True)
    assert store.header["why"] == "a test"
    assert store.header["nested"] == {"n": [1, 2]}


def test_lengths_given_by_hand_come_back(tmp_path, orbits):
    cut = Trajectories(orbits.states, labels=orbits.labels, lengths=[6, 4, 0, 1, 6, 5])
    back = save(cut, tmp_path / "s").trajectories()
    assert back.lengths.tolist() == [6, 4, 0, 1, 6, 5]
    assert not back.diverged.any()


def test_orbits_without_labels_come_back(tmp_path, orbits):
    store = save(Trajectories(orbits.states), tmp_path / "s")
    assert torch.equal(store.trajectories().states, orbits.states)
    assert dict(store.trajectories().labels) == store.labels == {}


def test_random_shapes_and_shard_sizes_come_back_whole(tmp_path, monkeypatch, rng):
    for case in range(30):
        shape = tuple(int(n) for n in rng.integers(1, [12, 7, 6]))
        states = torch.tensor(rng.normal(size=shape)).to(DTYPES[case % 4])
        states[torch.tensor(rng.random(shape) < 0.02)] = torch.nan
        given = Trajectories(states, labels={"unit": rng.integers(0, 3, shape[0])})
        orbit = states[0].numel() * states.element_size()
        monkeypatch.setattr(store_module, "SHARD_BYTES", int(orbit * rng.uniform(1, 5)))
        store = save(given, tmp_path / str(case))
        back = store.trajectories()
        assert torch.equal(raw(back.states), raw(states)), shape
        assert (back.lengths == given.lengths).all()
        assert (back.diverged == given.diverged).all()
        assert (back.labels["unit"] == given.labels["unit"]).all()
        assert all(raw(part.states).numel() <= store_module.SHARD_BYTES for part in store.parts())


def test_two_saves_give_the_same_bytes(tmp_path, monkeypatch, orbits):
    monkeypatch.setattr(store_module, "SHARD_BYTES", 2 * ORBIT + ORBIT // 2)
    one, two = (save(orbits, tmp_path / name, provenance={"n": 1}).folder for name in "ab")
    assert tree(one) == tree(two)
    assert len(tree(one)) == 4


def test_the_manifest_commits_shards_of_at_most_the_limit(three, orbits):
    lines = [json.loads(line) for line in (three / "manifest.jsonl").read_text().splitlines()]
    assert [line.get("kind") for line in lines] == [None, "shard", "shard", "shard", "complete"]
    for number, line in enumerate(lines[1:4]):
        assert line["bytes"] == shard(three, number).stat().st_size
        assert line["tensors"]["states"] == {"dtype": "F32", "shape": [2, STEPS, DIM]}
    assert torch.equal(open_store(three).trajectories().states, orbits.states)


def test_an_orbit_lies_in_one_piece_on_disk(three, orbits):
    for number, part in enumerate(open_store(three).parts()):
        assert part.states.stride() == (STEPS * DIM, DIM, 1)
        for orbit in range(2):
            assert orbits.states[2 * number + orbit].numpy().tobytes() in shard(three, number).read_bytes()


def test_shards_are_plain_safetensors(three, orbits):
    with safe_open(shard(three, 1), framework="pt") as file:
        assert set(file.keys()) == {"states", "lengths", "diverged"}
        assert torch.equal(file.get_tensor("states"), orbits.states[2:4])


def test_states_are_laid_out_by_prompt_layer_token_with_a_label_along_each(tmp_path, rng):
    states = torch.tensor(rng.normal(size=(2, 3, 4, STEPS, DIM)).astype("float32"))
    writer = StoreWriter(tmp_path / "s", {"labels": {"model": "m"}})
    writer.write_states("a", states, {"prompt": (0, [7, 9]), "layer": (1, [1, 2, 5]), "token": (2, [0, 3, 6, 8])})
    store = writer.finish()
    with safe_open(shard(store.folder, 0), framework="pt") as file:
        assert torch.equal(file.get_tensor("states"), states)
    assert torch.equal(store.trajectories(prompt=9, layer=2, token=6).states, states[1, 1, 2][None])
    assert torch.equal(store.trajectories(layer=[1, 5], token=8).states, states[:, [0, 2], 3].flatten(0, 1))
    assert set(store.labels["model"]) == {"m"}
    assert store.n_orbits == 24


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_parts_are_memory_mapped(three):
    part = next(open_store(three).parts())
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(shard(three, 0)))]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    assert any(begin <= part.states.data_ptr() < end for begin, end in ranges)


def test_a_shard_is_touched_only_when_its_orbits_are_wanted(three, orbits):
    shard(three, 1).write_bytes(b"")
    shard(three, 0).unlink()
    store = open_store(three)  # reads no shard
    assert (store.n_orbits, store.labels["prompt"].tolist()) == (N, [0, 0, 1, 1, 2, 2])
    assert torch.equal(store.trajectories(prompt=2).states, orbits.states[4:])
    parts = store.parts(token=1)
    with pytest.raises(DamagedShardError):
        next(parts)


def test_orbits_are_selected_by_label_across_shards(three, orbits):
    store = open_store(three)
    for wanted in ({"prompt": 1}, {"token": 0}, {"prompt": [0, 2], "token": 1}, {"prompt": np.int64(2)}):
        assert torch.equal(store.trajectories(**wanted).states, orbits.select(**wanted).states)
    assert [part.n_orbits for part in store.parts(prompt=[1, 2], token=0)] == [1, 1]
    assert store.part(0, prompt=1) is None
    with pytest.raises(ValueError, match=r"no label 'layer' in this store; it has prompt, token"):
        store.trajectories(layer=1)
    with pytest.raises(ValueError, match="no orbit of this store has prompt=9"):
        store.trajectories(prompt=9)


def test_only_the_manifest_says_what_exists(three, orbits):
    before = measure(open_store(three), [contraction_rate])[0]
    for name in ("zzz.safetensors", "states-00003.safetensors", "states-00000.safetensors.tmp"):
        shutil.copy(shard(three, 0), three / "shards" / name)
    (three / "shards" / "rubbish.safetensors").write_bytes(b"no shard")
    store = open_store(three)
    store.verify()
    assert (store.n_shards, store.n_orbits) == (3, N)
    assert torch.equal(store.trajectories().states, orbits.states)
    np.testing.assert_array_equal(measure(store, [contraction_rate])[0].values, before.values)


def test_a_torn_last_line_was_never_committed(three, tmp_path, orbits):
    whole = (three / "manifest.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    begin = len(b"".join(lines[:3]))
    for torn in (1, len(lines[3]) // 2, len(lines[3]) - 1):  # the last one lacks nothing but its line end
        (three / "manifest.jsonl").write_bytes(whole[:begin + torn])
        store = open_store(three)
        assert (store.n_shards, store.complete) == (2, False)
        assert torch.equal(store.trajectories().states, orbits.states[:4])
        writer = StoreWriter(three, store.header)
        assert (three / "manifest.jsonl").read_bytes() == whole[:begin]
        third = next(orbits[4:].chunks())
        writer.write_states("states-00002", third.states, {n: (0, v) for n, v in third.labels.items()})
        writer.finish()
        assert (three / "manifest.jsonl").read_bytes() == whole


def test_a_torn_header_is_an_empty_store_that_can_be_begun_again(tmp_path):
    StoreWriter(tmp_path / "s", {"a": 1})
    manifest = tmp_path / "s" / "manifest.jsonl"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:20])
    with pytest.raises(StoreError, match="is empty: its capture was stopped at once"):
        open_store(tmp_path / "s")
    StoreWriter(tmp_path / "s", {"a": 1})
    assert manifest.read_bytes() == whole


def flipped(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
    return damage


DAMAGE = {
    "a flipped bit in the states": flipped(-1),
    "a flipped bit in the header": flipped(40),
    "a flipped bit in the header's length": flipped(0),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut to nothing": lambda path: path.write_bytes(b""),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros of equal length": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zeros behind a whole header": lambda path: path.write_bytes(path.read_bytes()[:-64] + bytes(64)),
    "another shard's bytes": lambda path: shutil.copy(shard(path.parents[1], 0), path),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_named_and_never_read(three, orbits, damage):
    path = shard(three, 1)
    damage(path)
    for read in (lambda s: s.trajectories(), lambda s: list(s.parts()), lambda s: s.part(1), lambda s: s.verify(),
                 lambda s: s.verify(1), lambda s: measure(s, [contraction_rate])):
        with pytest.raises(DamagedShardError, match=rf"shard {path.name} .*Restore it from a copy"):
            read(open_store(three))
    store = open_store(three)
    assert torch.equal(store.part(0).states, orbits.states[:2])  # the others can still be read
    assert torch.equal(store.part(2).states, orbits.states[4:])
    store.verify(0)


@pytest.mark.parametrize("name", ["cut by a byte", "cut to nothing", "a byte more", "deleted"])
def test_check_finds_missing_and_short_shards_without_reading_them(three, name):
    open_store(three).check()
    DAMAGE[name](shard(three, 2))
    with pytest.raises(DamagedShardError, match="states-00002"):
        open_store(three).check()


def test_a_damaged_shard_of_inputs_is_named_too(tmp_path, orbits):
    writer = StoreWriter(tmp_path / "s", {})
    writer.write_states("a", orbits.states, {"prompt": (0, orbits.labels["prompt"])})
    writer.write("b-inputs", {"tokens": torch.arange(9), "flag": torch.tensor([True]), "byte": torch.zeros(2).byte()},
                 prompts=[0, 1])
    store = writer.finish()
    found, = store.inputs()
    assert found["tokens"].tolist() == list(range(9))
    assert found["prompts"] == [0, 1]
    flipped(-1)(shard(tmp_path / "s", 1))
    with pytest.raises(DamagedShardError, match=r"b-inputs\.safetensors"):
        next(open_store(tmp_path / "s").inputs())
    assert open_store(tmp_path / "s").trajectories().n_orbits == N


def manifest_of(folder, *lines):
    folder.mkdir()
    (folder / "manifest.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return folder


HEADER = b'{"format":"dynloop activation store","version":1}'


@pytest.mark.parametrize(("lines", "words"), [
    ([HEADER.replace(b"1}", b"2}")], "has store version 2; this dynloop reads version 1"),
    ([b'{"image": "a.png"}'], "is not a dynloop store: its manifest does not begin with a header"),
    ([HEADER, b'{"kind": "shard", "fi'], r"line 2 of .*manifest\.jsonl is not JSON"),
    ([HEADER], "holds no states yet: its capture was stopped early"),
    ([HEADER, b'{"kind":"complete","shards":0}'], "holds no states yet"),
    ([], "is empty"),
])
def test_what_is_no_usable_store_is_refused_with_words(tmp_path, lines, words):
    with pytest.raises(StoreError, match=words):
        open_store(manifest_of(tmp_path / "s", *lines))


def test_a_folder_without_manifest_is_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no dynloop store at .*: there is no manifest\.jsonl"):
            open_store(folder)


def test_shards_of_different_shapes_are_refused(tmp_path):
    writer = StoreWriter(tmp_path / "s", {})
    for steps in (4, 5):
        writer.write_states(f"s{steps}", torch.zeros(1, steps, 2), {"prompt": (0, [0])})
    with pytest.raises(StoreError, match="differ in recurrences or features"):
        writer.finish()


def test_an_unfinished_store_says_so_and_is_not_measured(tmp_path, orbits):
    writer = StoreWriter(tmp_path / "s", {})
    writer.write_states("a", orbits.states, {"prompt": (0, orbits.labels["prompt"])})
    store = Store(tmp_path / "s")
    assert not store.complete
    assert repr(store).endswith(", unfinished)")
    assert torch.equal(store.trajectories().states, orbits.states)  # what is committed can be looked at
    with pytest.raises(ValueError, match="is unfinished: its capture was interrupted"):
        measure(store, [contraction_rate])
    assert repr(writer.finish()).endswith(" MiB)")


def test_a_writer_refuses_what_is_not_its_own_and_leaves_it_alone(tmp_path, three):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("x")
    for folder, header, words in (
            (three, {"seed": 1, "n_orbits": N}, "made with other settings .*they differ in resolution, seed"),
            (foreign, {}, "is not empty and holds no dynloop store"),
            (manifest_of(tmp_path / "nemo", b'{"audio": 1}'), {}, "is not a dynloop store"),
            (file, {}, "is a file; a store is a folder")):
        before = tree(folder) or folder.read_bytes()
        with pytest.raises(StoreError, match=words):
            StoreWriter(folder, header)
        assert (tree(folder) or folder.read_bytes()) == before


def test_a_committed_shard_is_not_written_again(tmp_path, orbits):
    labels = {"prompt": (0, orbits.labels["prompt"])}
    writer = StoreWriter(tmp_path / "s", {})
    writer.write_states("a", orbits.states, labels)
    writer.write("b", {"tokens": torch.arange(3)})
    before = tree(tmp_path / "s")
    when = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "s" / "shards").iterdir()]
    with pytest.raises(StoreError, match="another process is writing"):
        StoreWriter(tmp_path / "s", {})
    with writer:
        pass
    for again in (writer, StoreWriter(tmp_path / "s", {})):
        assert (again.has("a"), again.has("b"), again.has("c")) == (True, True, False)
        again.write_states("a", torch.zeros_like(orbits.states), labels)
        again.write("b", {"tokens": torch.zeros(3)})
    assert tree(tmp_path / "s") == before
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "s" / "shards").iterdir()] == when


def test_finishing_twice_commits_once(tmp_path, orbits):
    writer = StoreWriter(tmp_path / "s", {})
    writer.write_states("a", orbits.states, {"prompt": (0, orbits.labels["prompt"])})
    writer.finish()
    before = tree(tmp_path / "s")
    again = StoreWriter(tmp_path / "s", {})
    assert again.complete
    again.finish()
    assert tree(tmp_path / "s") == before


def test_half_written_shards_are_removed_on_resume(tmp_path):
    StoreWriter(tmp_path / "s", {})
    (tmp_path / "s" / "shards").mkdir()
    (tmp_path / "s" / "shards" / "a.safetensors.tmp").write_bytes(b"half")
    StoreWriter(tmp_path / "s", {})
    assert set(tree(tmp_path / "s")) == {"manifest.jsonl"}


def test_save_refuses_a_folder_that_is_taken(three, orbits, tmp_path):
    before = tree(three)
    with pytest.raises(StoreError, match="holds a store already"):
        save(orbits, three)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(StoreError, match="is not empty"):
        save(orbits, tmp_path / "full")
    assert tree(three) == before


def test_an_orbit_that_no_shard_can_hold_is_refused_before_anything_is_written(tmp_path, monkeypatch, orbits):
    monkeypatch.setattr(store_module, "SHARD_BYTES", ORBIT - 1)
    with pytest.raises(StoreError, match=f"one orbit takes {ORBIT} bytes; a shard holds {ORBIT - 1}"):
        save(orbits, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    with pytest.raises(StoreError, match=r"is larger than .*; split it"):
        StoreWriter(tmp_path / "s", {}).write_states("a", orbits.states, {})


def test_states_that_share_memory_or_stride_are_stored_as_they_read(tmp_path, rng):
    base = torch.tensor(rng.normal(size=(DIM, STEPS, 2 * N)).astype("float32"))
    turned = base.permute(2, 1, 0)[::2]
    assert not turned.is_contiguous()
    given = Trajectories(turned, labels={"prompt": range(N)})
    assert torch.equal(save(given, tmp_path / "s").trajectories().states, turned)
    wide = Trajectories(turned[:1].expand(3, -1, -1), labels={"prompt": range(3)})
    assert torch.equal(save(wide, tmp_path / "w").trajectories().states, wide.states)
