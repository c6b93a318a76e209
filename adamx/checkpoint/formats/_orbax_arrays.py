"""The arrays of an Orbax item, which tensorstore reads when they are asked for."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._orbax_folders import Described, Item
from adamx.checkpoint.untrusted.account import Account, Progress
from adamx.checkpoint.untrusted.zarr_header import Header, check_chunk, read_header

__all__ = ["Array", "Store"]

_CHUNK = re.compile(r"[c\d./]*")


class Store:
    """The keys and values of an item.

    Attributes:
      is_third: whether arrays are of zarr's version 3.
      is_complete: whether all chunks are stored, also those of the fill value.
      notes: remarks on arrays that were read.
    """

    def __init__(
        self,
        item: Item,
        told: Any,
        account: Account,
        progress: Progress | None,
        notes: list[str],
    ) -> None:
        import tensorstore

        self.is_third = told.get("use_zarr3") is True
        self.is_complete = told.get("store_array_data_equal_to_fill_value") is True
        self.account, self.progress, self._library = account, progress, tensorstore
        self.notes = notes
        base = {"driver": "file", "path": f"{item.folder.resolve()}/"}
        is_joined = (item.folder / "manifest.ocdbt").is_file()
        if told.get("use_ocdbt") is True and not is_joined:
            raise CheckpointError("manifest.ocdbt is missing")
        self._spec: dict[str, Any] = {"driver": "ocdbt", "base": base} if is_joined else base
        # One array at a time, and no cache beside it.
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        self._values = tensorstore.KvStore.open(self._spec, context=self._context).result()

    def read_value(self, key: str) -> bytes:
        """The value of a key."""
        result = self._values.read(key.encode()).result()
        if result.state != "value":
            raise CheckpointError(f"{key} is missing")
        return result.value

    def list_chunks(self, name: str) -> list[str]:
        """The keys of the chunks of an array."""
        between = self._library.KvStore.KeyRange(f"{name}/".encode(), f"{name}0".encode())
        keys = [key.decode() for key in self._values.list(between).result()]
        return [key for key in keys if _CHUNK.fullmatch(key[len(name) + 1 :])]

    def open_array(self, name: str) -> Any:
        """An array as tensorstore has it."""
        path = f"{self._spec.get('path', '')}{name}/"
        spec = {
            "driver": "zarr3" if self.is_third else "zarr",
            "kvstore": {**self._spec, "path": path},
            "fill_missing_data_reads": not self.is_complete,
        }
        return self._library.open(spec, open=True, read=True, context=self._context).result()


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an item. Its header is read when its shape or dtype is asked for."""

    store: Store
    described: Described

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self._header.shape

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        return self._header.dtype

    def read(self) -> np.ndarray:
        """Its numbers; charged before tensorstore takes memory for them."""
        header, name = self._header, self.described.name
        self.store.account.spend(header.nbytes)
        return self._name(lambda: self._read_numbers(header, name))

    @functools.cached_property
    def _header(self) -> Header:
        return self._name(self._read_header)

    def _read_header(self) -> Header:
        key = "zarr.json" if self.store.is_third else ".zarray"
        text = self.store.read_value(f"{self.described.name}/{key}")
        header = read_header(text, self.store.account)
        least = self.described.least
        if least is not None and (
            len(least) != len(header.shape)
            or any(n > m for n, m in zip(least, header.shape, strict=True))
        ):
            raise CheckpointError(
                expected=f"shape {least}, as in _METADATA", found=f"{header.shape} in {key}"
            )
        return header

    def _read_numbers(self, header: Header, name: str) -> np.ndarray:
        chunks = self.store.list_chunks(name)
        if self.store.is_complete and len(chunks) < header.chunks:
            raise CheckpointError(expected=f"{header.chunks} chunks", found=len(chunks))
        if len(chunks) < header.chunks:
            absent = f"{header.chunks - len(chunks)} of {header.chunks} chunks are not stored"
            self.store.notes.append(f"{name}: {absent}, and are read as the fill value")
        for key in chunks:
            check_chunk(header, self.store.read_value(key))
        array = np.asarray(self.store.open_array(name).read().result())
        if (array.shape, array.dtype) != (header.shape, header.dtype):
            raise CheckpointError(
                expected=f"{header.dtype} of shape {header.shape}",
                found=f"{array.dtype} of shape {array.shape}",
            )
        if self.store.progress:
            self.store.progress(array.nbytes)
        return array

    def _name(self, function: Callable[[], Any]) -> Any:
        """The result of a function, or one error that names the array."""
        name = self.described.name
        try:
            return function()
        except CheckpointError as error:
            raise error.within(name) from error.__cause__
        except Exception as error:  # tensorstore raises many kinds
            cause = " ".join(str(error).split())[:200]
            raise CheckpointError(f"a damaged array: {cause}", where=name) from error
