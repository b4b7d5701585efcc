"""The version of the package, from the metadata of its installation."""

from importlib import metadata

try:
    __version__ = metadata.version("jaxnorm")
except metadata.PackageNotFoundError:  # a source tree that is on the path without being installed
    __version__ = "unknown"
