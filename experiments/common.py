"""What the scripts share: a clock, the libraries that are installed, and the types of their command lines."""

import argparse
import datetime
import importlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The value of a call, waited for, and the seconds it took."""
    import jax  # here, since bench_compiled.py sets JAX up before it is imported

    start = time.perf_counter()
    value = jax.block_until_ready(call())
    return value, time.perf_counter() - start


def installed(modules: Mapping[str, str]) -> dict[str, Any]:
    """Of modules by the names that rows give them those that are installed."""
    found = {}
    for name, module in modules.items():
        try:
            found[name] = importlib.import_module(module)
        except ImportError:
            continue
    return found


def setting_of(packages: Iterable[str]) -> dict[str, Any]:
    """What stands beside the rows of an audit: the day, the device and the versions of jax and of these packages."""
    import jax

    versions = {package: version(package) for package in ("jax", *packages)}
    return {"date": datetime.date.today().isoformat(), "device": jax.devices()[0].device_kind, "versions": versions}


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number and at least 1, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """A time to measure for; 0 takes as few samples as there can be."""
    return amount(text)


def amount(text: str) -> float:
    """A number that is finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value


def seed(text: str) -> int:
    """The seed of a random generator, JAX's and scikit-learn's."""
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 4294967295, got {text}")
    return int(text)


def folder(text: str) -> Path:
    """A folder that exists."""
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder that exists, got {text}")
    return path


def writable(text: str) -> Path:
    """A file in a folder that exists: better to know before the run than at its end."""
    folder(str(Path(text).parent))
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {text}")
    return Path(text)


def png_path(text: str) -> Path:
    """The same for a picture."""
    path = Path(text)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must name a .png file in a folder that exists, got {text}")
    return path
