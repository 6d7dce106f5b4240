"""`attend` through stock paged decode kernels: every (request, KV head) is a request of its own."""

from .routes import choose, load

__all__ = ["choose", "load"]
