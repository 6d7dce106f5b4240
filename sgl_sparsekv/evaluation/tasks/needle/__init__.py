"""Needles: answers at every depth of documents of every length."""
