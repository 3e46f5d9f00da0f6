"""Proofs of a finished run."""
