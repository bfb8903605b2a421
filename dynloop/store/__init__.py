"""The activation store: shards and a manifest."""

from dynloop.store.shards import DamagedShardError
from dynloop.store.store import SHARD_BYTES, Store, StoreError, StoreWriter, open_store, save
from dynloop.store.tensor_files import load

__all__ = ["SHARD_BYTES", "DamagedShardError", "Store", "StoreError", "StoreWriter", "load", "open_store", "save"]
