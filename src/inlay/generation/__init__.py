"""Answers from a base with or without an adapter."""
