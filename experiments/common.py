"""What the training scripts share: a clock and the types of their command lines."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The value of a call, waited for, and the seconds it took."""
    start = time.perf_counter()
    value = jax.block_until_ready(call())
    return value, time.perf_counter() - start


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def png_path(text: str) -> Path:
    """A path that can be written at the end of the run: better to know before it."""
    path = Path(text)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must name a .png file in a folder that exists, got {text}")
    return path
