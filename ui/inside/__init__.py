"""The tab Inside."""

from .laboratory import build_laboratory as build_inside

__all__ = ["build_inside"]
