"""Trained adapters as things: what a name means."""
