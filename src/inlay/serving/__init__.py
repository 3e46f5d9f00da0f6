"""The HTTP server: one base, many adapters. The front, which speaks HTTP, imports no torch."""
