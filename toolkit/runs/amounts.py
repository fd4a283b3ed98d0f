"""Amounts as a person reads them."""

from __future__ import annotations

__all__ = ["size"]


def size(bytes_: float) -> str:
    """A number of bytes with its unit, powers of 1,024.

    >>> size(3 * 2**29)
    '1.5 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if bytes_ < 1024:
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} TiB"
