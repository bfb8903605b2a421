"""The recording is checked at the door, frozen, and reads every orbit up to its first number that is none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Trajectories

ONES = np.ones((3, 5, 2))


@pytest.mark.parametrize(("states", "words"), [
    ([[[1.0]]], "torch tensor or a NumPy array; got list"),
    (None, "got NoneType"),
    (Trajectories(ONES), "got Trajectories"),
    (ONES.astype(np.int64), "array of int64.*astype"),
    (ONES.astype(bool), "array of bool"),
    (ONES.astype(np.complex64), "array of complex64"),
    (ONES.astype(np.longdouble), f"array of {np.dtype(np.longdouble)}"),
    (ONES.astype(object), "array of object"),
    (torch.ones(3, 5, 2, dtype=torch.int32), "torch.int32.*float()"),
    (torch.ones(3, 5, 2, dtype=torch.complex64), "torch.complex64"),
    (torch.ones(3, 5, 2).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
])
def test_what_is_not_an_array_of_floating_point_numbers_is_refused(states, words):
    with pytest.raises(TypeError, match=words):
        Trajectories(states)


@pytest.mark.parametrize(("shape", "words"), [
    ((5, 2), r"got \(5, 2\). One orbit\? Pass states\[None\]"),
    ((1, 3, 5, 2), "n_orbits, n_steps, dim"),
    ((0, 5, 2), "at least one orbit"),
    ((3, 0, 2), "one step"),
    ((3, 5, 0), "one dimension"),
])
def test_other_shapes_are_refused(shape, words):
    with pytest.raises(ValueError, match=words):
        Trajectories(np.ones(shape))


@pytest.mark.parametrize(("given", "words"), [
    ({"labels": {"prompt": [1, 2]}}, r"label 'prompt' must hold one value for each of 3 orbits; got shape \(2,\)"),
    ({"labels": {"prompt": [[1], [2], [3]]}}, r"got shape \(3, 1\)"),
    ({"lengths": [1, 2]}, "lengths must be whole numbers from 0 to 5, one for each of 3 orbits"),
    ({"lengths": [1, 2, 6]}, "lengths must be whole numbers"),
    ({"lengths": [1, 2, -1]}, "lengths must be whole numbers"),
    ({"lengths": [1.0, 2.0, 3.0]}, "got float64"),
    ({"lengths": [True, True, False]}, "got bool"),
    ({"lengths": 5}, r"got int64 of shape \(\)"),
    ({"diverged": [False] * 3}, "diverged goes with lengths"),
    ({"diverged": [False], "lengths": [5, 5, 5]}, "diverged goes with lengths"),
    *(({"resolution": bad}, "relative spacing of a number format") for bad in (0, 1, -1e-3, 2.0, np.nan, np.inf)),
])
def test_labels_lengths_and_resolutions_that_do_not_fit_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Trajectories(ONES, **given)


def reshaped(a):
    """The same numbers as a view that skips memory."""
    wide = np.full((*a.shape[:2], 2 * a.shape[2]), np.nan, dtype=a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


@pytest.mark.parametrize("layout", [np.asarray, read_only, np.asfortranarray, reshaped,
                                    lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
                                    lambda a: a.astype(a.dtype.newbyteorder(">")),
                                    lambda a: read_only(a.astype(a.dtype.newbyteorder(">"))[:, ::-1])[:, ::-1],
                                    lambda a: torch.from_numpy(a.copy()).requires_grad_()],
                         ids=["plain", "read-only", "fortran", "strided", "backwards", "big-endian", "all at once",
                              "with gradient"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_layout_in_memory_gives_the_same_numbers(rng, layout, dtype):
    a = rng.normal(size=(3, 5, 2)).astype(dtype)
    orbits = Trajectories(layout(a))
    assert str(orbits.states.dtype) == f"torch.{dtype}"
    assert not orbits.states.requires_grad
    assert torch.equal(orbits.states, torch.from_numpy(a))


def test_one_orbit_broadcast_to_many_is_accepted():
    assert Trajectories(np.broadcast_to(ONES[:1], (7, 5, 2))).n_orbits == 7


def test_memory_is_shared_and_not_copied():
    a = ONES.copy()
    assert Trajectories(a).states.data_ptr() == a.ctypes.data
    t = torch.ones(3, 5, 2)
    assert Trajectories(t)[1:].states.data_ptr() == t[1:].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_resolution_is_the_spacing_of_the_dtype_unless_given(dtype):
    states = torch.ones(3, 5, 2, dtype=dtype)
    assert Trajectories(states).resolution == torch.finfo(dtype).eps
    assert Trajectories(states, resolution=2**-7).resolution == 2**-7


def test_bfloat16_of_ml_dtypes_is_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.arange(30).reshape(3, 5, 2).astype(ml_dtypes.bfloat16)
    for layout in (a, read_only(a), a[::-1].copy()[::-1]):
        orbits = Trajectories(layout)
        assert orbits.states.dtype == torch.bfloat16
        assert orbits.states.flatten().tolist() == list(range(30))


BAD = st.sampled_from([np.nan, np.inf, -np.inf])


@given(st.data(), st.sampled_from(["float64", "float32", "float16", "bfloat16"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_number_that_is_none_cuts_its_own_orbit_only(data, dtype, ragged):
    n, n_steps, dim = (data.draw(st.integers(1, most)) for most in (5, 9, 3))
    states = torch.ones(n, n_steps, dim, dtype=getattr(torch, dtype))
    finite = np.full(n, n_steps)
    for o, t, d, value in data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n_steps - 1),
                                                       st.integers(0, dim - 1), BAD), max_size=6)):
        states[o, t, d] = value
        finite[o] = min(finite[o], t)
    lengths = np.array(data.draw(st.lists(st.integers(0, n_steps), min_size=n, max_size=n))) if ragged else None
    orbits = Trajectories(states, lengths=lengths)
    until = np.full(n, n_steps) if lengths is None else lengths
    assert orbits.lengths.tolist() == np.minimum(finite, until).tolist()
    assert orbits.diverged.tolist() == (finite < until).tolist()  # what lies beyond a given length does not count


def test_lengths_and_divergence_given_together_are_believed_unread():
    orbits = Trajectories(np.full((2, 5, 1), np.nan), lengths=[3, 5], diverged=[True, False])
    assert orbits.lengths.tolist() == [3, 5]
    assert orbits.diverged.tolist() == [True, False]


def test_a_scan_in_small_blocks_sees_every_orbit(monkeypatch):
    states = np.ones((7, 5, 2))
    states[[2, 6], [4, 0]] = np.nan
    monkeypatch.setattr("dynloop.trajectories.CHUNK_BYTES", 2 * 5 * 2 * 4)  # two orbits
    assert Trajectories(states).lengths.tolist() == [5, 5, 4, 5, 5, 5, 0]


def labelled(n=6):
    states = np.arange(n * 4 * 2, dtype=float).reshape(n, 4, 2)
    states[1, 2] = np.nan
    return Trajectories(states, labels={"id": np.arange(n), "half": np.arange(n) // (n // 2), "model": "nano"},
                        resolution=1e-3)


def test_labels_are_one_value_an_orbit_or_one_for_all():
    orbits = labelled()
    assert orbits.labels["half"].tolist() == [0, 0, 0, 1, 1, 1]
    assert orbits.labels["model"].tolist() == ["nano"] * 6
    assert len(orbits) == orbits.n_orbits == 6
    assert (orbits.n_steps, orbits.dim) == (4, 2)
    assert repr(orbits) == "Trajectories(6 orbits of 4 steps in 2 dimensions, float64; labels: id, half, model)"


def test_nothing_can_be_set():
    orbits = labelled()
    for name in ("states", "labels", "lengths", "resolution", "_states", "derived", "anything"):
        with pytest.raises(AttributeError, match=r"frozen.*replace"):
            setattr(orbits, name, 1)
    with pytest.raises(TypeError, match="does not support item assignment"):
        orbits.labels["id"] = np.zeros(6)


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("index", [slice(None), slice(2, 5), slice(None, None, 2), slice(-2, None), 0, 5, -1, -6,
                                   np.int64(3), [0, 1], [1, 1, 0], np.array([-1, 1]), torch.tensor([4, 1]),
                                   np.arange(6) % 2 == 1, [True, False, False, True, False, False]], ids=repr)
def test_labels_lengths_and_resolution_follow_their_orbits(index, scanned):
    orbits = labelled()
    if scanned:
        orbits.lengths  # noqa: B018 (a look is what is tested)
    part = orbits[index]
    ids = np.atleast_1d(np.arange(6)[index])
    assert part.labels["id"].tolist() == ids.tolist()
    assert part.states[:, 0, 0].tolist() == (8 * ids).tolist()
    assert part.lengths.tolist() == np.where(ids == 1, 2, 4).tolist()
    assert part.diverged.tolist() == (ids == 1).tolist()
    assert part.resolution == 1e-3


@pytest.mark.parametrize("index", [6, -7])
def test_an_orbit_that_is_not_there_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"orbit {index} of 6"):
        labelled()[index]


def test_no_orbit_at_all_cannot_be_taken():
    for none in (slice(3, 3), np.zeros(6, dtype=bool)):
        with pytest.raises(ValueError, match="at least one orbit"):
            labelled()[none]


def test_select_takes_one_value_or_several_and_joins_conditions():
    orbits = labelled()
    assert orbits.select(half=1).labels["id"].tolist() == [3, 4, 5]
    assert orbits.select(id=[0, 4, 99], model="nano").labels["id"].tolist() == [0, 4]
    assert orbits.select(half=0, id=range(2, 6)).labels["id"].tolist() == [2]


@pytest.mark.parametrize(("wanted", "words"), [
    ({"layer": 1}, "no label 'layer'; these orbits have id, half, model"),
    ({"half": 2}, "no orbit has half=2; there are half: 0, 1"),
    ({"half": 0, "id": 5}, "no orbit has half=0, id=5"),
    ({"id": []}, "no orbit has id="),
])
def test_select_says_what_is_there_instead(wanted, words):
    with pytest.raises(ValueError, match=words):
        labelled().select(**wanted)
    with pytest.raises(ValueError, match="no label 'a'; these orbits have no labels"):
        Trajectories(ONES).select(a=1)


def test_a_long_list_of_values_is_cut_short():
    with pytest.raises(ValueError, match=r"id: 0, 1, 2, 3, 4, 5, 6, 7, ... \(20\)"):
        labelled(20).select(id=99)


def test_a_cast_keeps_the_resolution_of_the_computation():
    orbits = Trajectories(torch.ones(2, 4, 3, dtype=torch.bfloat16))
    cast = orbits.replace(states=orbits.states.float())
    assert cast.states.dtype == torch.float32
    assert cast.resolution == torch.finfo(torch.bfloat16).eps
    assert cast.replace(resolution=None).resolution == torch.finfo(torch.float32).eps


def test_replace_changes_what_is_named_and_keeps_the_rest():
    orbits = labelled()
    assert orbits.replace(labels={"new": 1}).labels["new"].tolist() == [1] * 6
    assert orbits.replace(labels={"new": 1}).lengths.tolist() == [4, 2, 4, 4, 4, 4]
    assert orbits.replace(labels=None).labels == {}
    assert orbits.replace(resolution=0.5).resolution == 0.5
    assert orbits.replace(lengths=[1] * 6).lengths.tolist() == [1] * 6
    assert orbits.replace(lengths=[1] * 6).replace(labels=None).lengths.tolist() == [1] * 6
    assert orbits.labels["id"].tolist() == list(range(6))
    with pytest.raises(ValueError, match="label 'id'"):
        orbits.replace(states=ONES)


def test_new_states_are_scanned_anew():
    orbits = labelled()
    assert orbits.lengths[1] == 2
    healed = orbits.replace(states=orbits.states.nan_to_num())
    assert healed.lengths.tolist() == [4] * 6
    assert not healed.diverged.any()


def test_what_was_derived_from_old_states_is_not_passed_on():
    orbits = labelled()
    orbits.derived["distances"] = "of these states"
    assert orbits.replace(states=orbits.states + 1).derived == orbits[1:].derived == {}


@given(st.integers(1, 9), st.integers(0, 400))
@settings(max_examples=40, deadline=None)
def test_chunks_are_bounded_and_are_the_whole(n_orbits, max_bytes):
    orbits = labelled(2 * n_orbits)
    chunks = list(orbits.chunks(max_bytes=max_bytes))
    one = 4 * 4 * 4  # bytes of an orbit's distances in float32; its states take less
    assert all(len(chunk) == 1 or len(chunk) * one <= max_bytes for chunk in chunks)
    assert all((len(chunk) + 1) * one > max_bytes for chunk in chunks[:-1])
    assert np.concatenate([chunk.labels["id"] for chunk in chunks]).tolist() == list(range(2 * n_orbits))


def test_a_small_recording_is_its_own_chunk():
    orbits = labelled()
    assert next(orbits.chunks()) is orbits  # so that what was derived is found again
