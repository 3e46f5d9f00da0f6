"""inlay: low-rank fine-tuning of a frozen language model, and a proof of what it changed."""

__version__ = "0.1.0"
