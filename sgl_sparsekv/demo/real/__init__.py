"""The second act: a pretrained language model reads a real text, sparse beside dense."""
