"""Three small models, and documents to ask those about that retrieve."""

from __future__ import annotations

from sgl_sparsekv.models.analytic import (
    LOST,
    AnalyticConfig,
    build_analytic,
    build_analytic_tokenizer,
    save_analytic,
)
from sgl_sparsekv.models.documents import Document, Question, chain_document, needle_document
from sgl_sparsekv.models.text import build_text_tokenizer, load_text, save_text, train_text
from sgl_sparsekv.models.trained import (
    build_trained_tokenizer,
    load_trained,
    recipe,
    save_trained,
    train,
)

__all__ = [
    "LOST",
    "AnalyticConfig",
    "Document",
    "Question",
    "build_analytic",
    "build_analytic_tokenizer",
    "build_text_tokenizer",
    "build_trained_tokenizer",
    "chain_document",
    "load_text",
    "load_trained",
    "needle_document",
    "recipe",
    "save_analytic",
    "save_text",
    "save_trained",
    "train",
    "train_text",
]
