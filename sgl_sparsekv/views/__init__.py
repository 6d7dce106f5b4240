"""What single requests keep of their rows: made when a prompt is read, renewed as answers grow.

A view lists positions, never slots: a running request's pages can change between steps, and a
retracted one comes back on others. It owns nothing of SGLang's pool, and no other request sees it.
"""

from .layer_view import LayerView, lists_of
from .packed_row import PackedRow
from .request_view import RequestView

__all__ = ["LayerView", "PackedRow", "RequestView", "lists_of"]
