"""How units are chosen: one file per method, the policy once, the registry by name."""

from .base import SelectionMethod
from .registry import METHODS, load_method, method_names

__all__ = ["METHODS", "SelectionMethod", "load_method", "method_names"]
