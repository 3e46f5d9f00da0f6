"""One verb from its beginning to its end."""
