"""Two small models that really retrieve, and documents to ask them about."""
