"""Messages between two Python processes: JSON with arrays behind it, each with its length in front.

It needs nothing but numpy, of any version, so that both ends can be different environments.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

Message = dict[str, Any]
_LENGTH = 8  # bytes, big-endian


def send(stream: BinaryIO, message: Message, arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a message, and the arrays that belong to it.

    Args:
        stream: Where to.
        message: Anything that JSON can hold, with string keys.
        arrays: Numeric arrays of any shape.
    """
    _write(stream, json.dumps({**message, "arrays": len(arrays)}).encode())
    for array in arrays:
        block = io.BytesIO()
        np.save(block, np.ascontiguousarray(array), allow_pickle=False)
        _write(stream, block.getvalue())
    stream.flush()


def receive(read: Callable[[int], bytes]) -> tuple[Message, list[np.ndarray]]:
    """Read a message and its arrays.

    Args:
        read: Returns exactly so many bytes, as the ``read`` of a buffered stream does before its end.

    Raises:
        EOFError: The stream ended.

    Example:
        >>> stream = io.BytesIO()
        >>> send(stream, {"do": "run"}, [np.arange(3)])
        >>> receive(io.BytesIO(stream.getvalue()).read)
        ({'do': 'run'}, [array([0, 1, 2])])
    """
    message = json.loads(_read(read))
    arrays = [np.load(io.BytesIO(_read(read)), allow_pickle=False) for _ in range(message.pop("arrays"))]
    return message, arrays


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(_LENGTH, "big"))
    stream.write(data)


def _read(read: Callable[[int], bytes]) -> bytes:
    return _exactly(read, int.from_bytes(_exactly(read, _LENGTH), "big"))


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    data = read(count)
    if len(data) != count:
        raise EOFError(f"the stream ended {count - len(data)} bytes early")
    return data
