"""RULER: synthetic tasks at any length."""

from .task import TASKS, RulerTask

__all__ = ["TASKS", "RulerTask"]
