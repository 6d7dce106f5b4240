"""Views on each path of decode: what a step shows them, where they lie, what is packed."""
