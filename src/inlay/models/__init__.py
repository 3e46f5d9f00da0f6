"""The frozen base, its adapters, and what this machine can do with them."""
