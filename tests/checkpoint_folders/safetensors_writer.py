"""Safetensors files as their package writes them, and others."""

import json

__all__ = ["KINDS", "write_header", "write_safetensors"]

KINDS = {
    "bool": "BOOL",
    "int64": "I64",
    "uint8": "U8",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def write_safetensors(path, arrays, **metadata):
    """With names sorted, and the values one after another."""
    header, values = {"__metadata__": {"format": "pt", **metadata}}, b""
    for name, array in sorted(arrays.items()):
        offsets = [len(values), len(values) + array.nbytes]
        kind = KINDS[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        values += array.tobytes()
    return write_header(path, json.dumps(header), values)


def write_header(path, text, values=b""):
    """With this text as its header."""
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + values)
    return path
