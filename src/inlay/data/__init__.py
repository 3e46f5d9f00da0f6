"""Rows, formats, the encoder and batches: from a file to ids."""
