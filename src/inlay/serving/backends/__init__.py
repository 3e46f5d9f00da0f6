"""Engines of other programs behind the front of the server."""
