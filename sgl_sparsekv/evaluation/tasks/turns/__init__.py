"""A conversation over one growing prefix: the same document asked again and again."""
