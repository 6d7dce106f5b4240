"""How well selections find what attention needs, on keys and queries of real models."""
