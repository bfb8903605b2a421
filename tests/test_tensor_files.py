"""Tensors that somebody else saved: any axis order, no pickled code, and a sentence for everything that is refused."""

import io
import itertools
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from dynloop import Trajectories, load

AXES = ("prompt", "token", "recurrence", "feature")
SHAPE = (2, 3, 7, 4)


def pt(held, **settings):
    file = io.BytesIO()
    torch.save(held, file, **settings)
    return file.getvalue()


def legacy(held):
    return pt(held, _use_new_zipfile_serialization=False)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WRITERS = {
    "x.npy": lambda t: npy(t.numpy()),
    "x.npz": lambda t: npz(states=t.numpy()),
    "zip.pt": pt,
    "dict.pt": lambda t: pt({"states": t, "step": 3, "note": "one tensor, so no key is needed"}),
    "legacy.pt": legacy,
    "zip.pth": pt,
    "legacy.pth": lambda t: legacy({"states": t}),
    "x.safetensors": lambda t: safetensors_bytes({"states": t.contiguous()}),
}
formats = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture
def states(rng):
    return torch.tensor(rng.normal(size=SHAPE).astype("float32"))


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path
    return write


@formats
def test_axes_come_in_any_order(put, states, name):
    expected = states.flatten(0, 1)
    for order in itertools.permutations(range(4)):
        path = put(name, WRITERS[name](states.permute(order)))
        found = load(path, axes=[AXES[i] for i in order])
        by_label = {(p, t): orbit for p, t, orbit in zip(found.labels["prompt"], found.labels["token"], found.states,
                                                         strict=True)}
        assert len(by_label) == 6
        for (p, t), orbit in by_label.items():
            assert torch.equal(orbit, expected[3 * p + t]), (order, p, t)


@formats
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_dtype_is_kept_and_one_axis_name_a_dimension_may_be_a_text(put, states, name, dtype):
    found = load(put(name, WRITERS[name](states.to(dtype))), axes=" prompt, token ,recurrence,feature")
    assert found.states.dtype == dtype
    assert torch.equal(found.states, states.to(dtype).flatten(0, 1))
    assert found.resolution == torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "x.safetensors"])
def test_bfloat16_is_read(put, states, name):
    found = load(put(name, WRITERS[name](states.bfloat16())), axes=AXES, resolution=2.0**-9)
    assert torch.equal(found.states, states.bfloat16().flatten(0, 1))
    assert found.resolution == 2.0**-9


def test_a_single_orbit_needs_no_label(put, states):
    found = load(put("x.npy", npy(states[0, 0].numpy())), axes="recurrence,feature")
    assert (found.n_orbits, dict(found.labels)) == (1, {})


def test_a_nan_shortens_its_orbit(put, states):
    states[1, 2, 4] = torch.nan
    assert load(put("x.npy", npy(states.numpy())), axes=AXES).lengths.tolist() == [7, 7, 7, 7, 7, 4]


@pytest.mark.parametrize("order", ["big endian", "fortran", "backwards"])
def test_arrays_in_any_memory_order_read_the_same(put, states, order):
    array = {"big endian": states.numpy().astype(">f4"), "fortran": np.asfortranarray(states.numpy()),
             "backwards": states.numpy()[::-1].copy()[::-1]}[order]
    assert torch.equal(load(put("x.npy", npy(array)), axes=AXES).states, states.flatten(0, 1))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "zip.pt"])
def test_files_are_memory_mapped_where_that_can_be(put, states, name):
    path = put(name, WRITERS[name](states))
    found = load(path, axes=AXES)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    assert any(begin <= found.states.data_ptr() < end for begin, end in ranges)


def test_labels_replace_the_count_along_an_axis_or_stand_for_all(put, states):
    found = load(put("x.npy", npy(states.permute(1, 0, 2, 3).numpy())), axes="layer,prompt,recurrence,feature",
                 labels={"layer": ["a", "b", "c"], "prompt": [5, 9], "model": "Ouro"})
    assert found.labels["layer"].tolist() == ["a", "a", "b", "b", "c", "c"]
    assert found.labels["prompt"].tolist() == [5, 9] * 3
    assert set(found.labels["model"]) == {"Ouro"}
    assert torch.equal(found.select(layer="b", prompt=9).states[0], states[1, 1])


@pytest.mark.parametrize(("labels", "words"), [
    ({"token": [1, 2]}, r"labels for axis 'token' must be 3 values; got shape \(2,\)"),
    ({"token": [[1, 2, 3]]}, r"labels for axis 'token' must be 3 values; got shape \(1, 3\)"),
    ({"seed": [1, 2]}, "label 'seed' is no axis of x.npy .*takes a single value"),
])
def test_labels_that_do_not_fit_are_refused(put, states, labels, words):
    with pytest.raises(ValueError, match=words):
        load(put("x.npy", npy(states.numpy())), axes=AXES, labels=labels)


HOLDERS = {
    "x.npz": lambda a, b: npz(a=a.numpy(), b=b.numpy()),
    "x.pt": lambda a, b: pt({"a": a, "b": b, "n": 5}),
    "legacy.pth": lambda a, b: legacy({"a": a, "b": b}),
    "x.safetensors": lambda a, b: safetensors_bytes({"a": a, "b": b}),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_file_of_several_tensors_needs_the_right_key(put, states, name):
    path = put(name, HOLDERS[name](states, 2 * states))
    assert torch.equal(load(path, axes=AXES, key="b").states, 2 * states.flatten(0, 1))
    with pytest.raises(ValueError, match=f"{name} holds the tensors a, b; none was named. Choose one with key"):
        load(path, axes=AXES)
    for wrong in ("c", "n"):
        with pytest.raises(ValueError, match=f"holds the tensors a, b; got '{wrong}'"):
            load(path, axes=AXES, key=wrong)


@pytest.mark.parametrize("name", ["x.npy", "zip.pt", "legacy.pt"])
def test_a_file_of_one_tensor_takes_no_key(put, states, name):
    with pytest.raises(ValueError, match=f"{name} holds one .*; leave key out"):
        load(put(name, WRITERS[name](states)), axes=AXES, key="states")


def test_a_safetensors_file_may_hold_other_things_of_any_dtype(put, states):
    others = {"small": torch.tensor(3, dtype=torch.int8), "byte": torch.zeros(3).byte(), "none": torch.zeros(0, 5),
              "odd": torch.zeros(3, dtype=torch.int16), "narrow": torch.zeros(5, dtype=torch.float8_e5m2)}
    path = put("x.safetensors", safetensors_bytes({"wanted": states.bfloat16(), **others}, metadata={"by": "them"}))
    assert torch.equal(load(path, axes=AXES, key="wanted").states, states.bfloat16().flatten(0, 1))
    with pytest.raises(ValueError, match=r"none was named. Choose one with key"):
        load(path, axes=AXES)


@pytest.mark.parametrize(("axes", "words"), [
    ("prompt,recurrence,feature", r"x.npy has 4 axes, shape \(2, 3, 7, 4\); got 3 axis names"),
    ("a,prompt,token,recurrence,feature", "got 5 axis names"),
    ("", "got 1 axis names"),
    ("prompt,token,step,feature", "with 'recurrence' and 'feature' among them; got prompt, token, step, feature"),
    ("prompt,token,recurrence,dim", "with 'recurrence' and 'feature' among them"),
    ("prompt,prompt,recurrence,feature", "axes must be distinct names"),
    ("prompt,recurrence,recurrence,feature", "axes must be distinct names"),
])
def test_wrong_axes_are_refused(put, states, axes, words):
    with pytest.raises(ValueError, match=words):
        load(put("x.npy", npy(states.numpy())), axes=axes)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.pkl", "x.bin"])
def test_an_unknown_ending_is_refused_unread(put, name):
    with pytest.raises(ValueError, match=r"tensors are read from \.pt, \.pth, \.npy, \.npz, \.safetensors"):
        load(put(name, b"whatever"), axes=AXES)


def test_a_missing_file_and_a_folder_are_no_file(tmp_path):
    for path in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*Name a tensor file"):
            load(path, axes=AXES)


@formats
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_numbers_that_are_not_floating_point_are_refused(put, states, name, dtype):
    with pytest.raises(TypeError, match="states must be floating-point numbers"):
        load(put(name, WRITERS[name](states.to(dtype))), axes=AXES)


@pytest.mark.parametrize(("name", "content"), [
    ("x.npy", npy(np.zeros(SHAPE, "complex64"))), ("x.npy", npy(np.zeros(SHAPE, "longdouble"))),
    ("x.npy", npy(np.full(SHAPE, "a"))), ("x.npz", npz(a=np.zeros(SHAPE, "datetime64[s]"))),
    ("x.pt", pt(torch.zeros(SHAPE, dtype=torch.complex64))), ("x.pt", pt(torch.zeros(SHAPE).to(torch.float8_e4m3fn))),
])
def test_other_dtypes_are_refused(put, name, content):
    with pytest.raises(TypeError, match="states must be floating-point numbers"):
        load(put(name, content), axes=AXES)


@pytest.mark.parametrize(("content", "words"), [
    (pt([torch.zeros(SHAPE)]), "holds a list; a tensor or a dictionary of tensors is needed"),
    (pt({"a": {"b": torch.zeros(SHAPE)}}), r"holds the tensors \(none\)"),
    (pt(torch.nn.Linear(2, 2)), "never runs pickled code"),
    (pt({"a": np.zeros(SHAPE)}), "never runs pickled code"),
])
def test_pt_files_of_other_things_are_refused(put, content, words):
    with pytest.raises(ValueError, match=words):
        load(put("x.pt", content), axes=AXES)


@pytest.mark.parametrize(("name", "keep"), [
    ("x.npy", 0), ("x.npy", 40), ("x.npy", 0.9), ("zip.pt", 0), ("zip.pt", 100), ("zip.pt", 0.5), ("zip.pt", 0.99),
    ("legacy.pt", 0), ("legacy.pt", 0.5), ("legacy.pt", 0.99), ("x.safetensors", 0), ("x.safetensors", 5),
    ("x.safetensors", 40), ("x.safetensors", 0.9), ("x.npz", 0)])
def test_a_file_that_is_cut_short_is_refused(put, states, name, keep):
    whole = WRITERS[name](states)
    with pytest.raises(ValueError):
        load(put(name, whole[:int(keep * len(whole)) if keep < 1 else keep]), axes=AXES)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return exec, (f"open({self.mark!r}, 'w').close()",)


BOMBS = {
    "zip.pt": pt, "zip.pth": lambda bomb: pt({"states": torch.zeros(SHAPE), "bomb": bomb}),
    "legacy.pt": legacy, "legacy.pth": lambda bomb: legacy({"states": torch.zeros(SHAPE), "bomb": bomb}),
    "raw.pt": lambda bomb: pickle.dumps(bomb, protocol=2), "raw.npy": pickle.dumps, "raw.npz": pickle.dumps,
    "object.npy": lambda bomb: npy(np.array([bomb, bomb], dtype=object)),
    "object.npz": lambda bomb: npz(states=np.array([bomb], dtype=object)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickled_code_never_runs(put, tmp_path, name):
    bomb = Bomb(tmp_path / "exploded")
    pickle.loads(pickle.dumps(bomb))
    Path(bomb.mark).unlink()  # the bomb does work, so that the next line could fail
    with pytest.raises(ValueError, match="memory-mapped|pickled code" if name == "object.npy" else
                       "dynloop never runs pickled code"):
        load(put(name, BOMBS[name](bomb)), axes=AXES)
    assert not Path(bomb.mark).exists()


def test_what_was_loaded_is_trajectories(put, states):
    found = load(put("x.pt", pt(torch.nn.Parameter(states))), axes=AXES)
    assert isinstance(found, Trajectories)
    assert not found.states.requires_grad
