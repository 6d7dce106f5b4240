"""Query-aware sparse decoding over SGLang's radix prefix cache."""

__version__ = "0.1.0"
TESTED_SGLANG = ("0.5.23",)
"""SGLang releases whose hooks were tested; any other is refused at start-up."""
