"""Examples to token ids."""
