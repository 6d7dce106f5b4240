"""How units are chosen: one file per method, the policy once, the registry by name."""

from .base import IndexOptions, SelectionMethod
from .registry import METHODS, load_method, method_names, view_names

__all__ = [
    "METHODS",
    "IndexOptions",
    "SelectionMethod",
    "load_method",
    "method_names",
    "view_names",
]
