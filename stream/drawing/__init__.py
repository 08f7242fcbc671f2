"""A result drawn over its picture."""

from .overlay import draw, panel

__all__ = ["draw", "panel"]
