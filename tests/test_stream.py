"""Reading a store once from end to end: the same orbits as through memory maps, whatever the pieces."""

import errno
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynloop
from dynloop.store import DamagedShardError, StoreWriter


def write(folder, n_shards=3, n_orbits=37, n_steps=11, dim=13, dtype=torch.float32):
    writer = StoreWriter(folder, {"labels": {"model": "m"}, "resolution": 2.0**-23})
    generator = torch.Generator().manual_seed(1)
    for shard in range(n_shards):
        states = torch.randn(n_orbits, n_steps, dim, generator=generator).to(dtype)
        states[shard, 4 + shard] = torch.nan
        writer.write_states(f"states-{shard}", states, {"prompt": (0, np.arange(n_orbits) + 100 * shard)})
    return writer.finish()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    return {dtype: write(folder / str(dtype), dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)}


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.integers(1, 40_000))
@settings(max_examples=40, deadline=None)
def test_pieces_of_any_size_give_every_orbit_once_and_in_order(stores, dtype, piece_bytes):
    store = stores[dtype]
    streamed = list(store.stream(piece_bytes=piece_bytes))  # all held at once: no buffer may be used twice
    whole = store.trajectories()
    torch.testing.assert_close(torch.cat([s.states for s in streamed]), whole.states, rtol=0, atol=0, equal_nan=True)
    for name in ("lengths", "diverged"):
        np.testing.assert_array_equal(np.concatenate([getattr(s, name) for s in streamed]), getattr(whole, name))
    np.testing.assert_array_equal(np.concatenate([s.labels["prompt"] for s in streamed]), whole.labels["prompt"])


def test_a_piece_that_is_let_go_makes_room_for_the_next(stores):
    places = {piece.states.data_ptr() // 4096 for piece in stores[torch.float32].stream(piece_bytes=600)}
    assert len(places) < 20  # of 111 pieces


def test_a_disk_without_direct_reads_is_read_all_the_same(stores, monkeypatch):
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert sum(piece.n_orbits for piece in stores[torch.float32].stream(piece_bytes=5000)) == 111


@pytest.mark.parametrize("place", [0.2, 0.5, 0.999])
def test_a_flipped_byte_is_found_wherever_it_lies_and_the_shard_is_named(tmp_path, place):
    store = write(tmp_path / "store")
    path = store.folder / "shards" / "states-1.safetensors"
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedShardError, match=r"states-1\.safetensors is damaged"):
        dynloop.measure(dynloop.open_store(store.folder), [dynloop.successive_distance])


def test_a_truncated_shard_is_named(tmp_path):
    store = write(tmp_path / "store")
    path = store.folder / "shards" / "states-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedShardError, match=r"states-2\.safetensors is damaged"):
        list(store.stream())


def test_a_reader_that_stops_early_leaves_nothing_open(stores):
    before = len(os.listdir("/proc/self/fd"))
    stream = stores[torch.float32].stream(piece_bytes=600)
    next(stream)
    stream.close()
    assert len(os.listdir("/proc/self/fd")) <= before
