"""Bridges to other libraries; each needs its library installed and is imported by name."""

from kit.errors import KitError


class MissingPackageError(KitError, ImportError):
    """The library an integration is for cannot be imported."""
