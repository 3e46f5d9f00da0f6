"""Forward and backward of Llama-like decoders written by hand: docs/engine.md derives each backward."""
