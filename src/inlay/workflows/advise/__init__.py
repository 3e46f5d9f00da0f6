"""Fine-tune, retrieve, or both: the ways measured on the same rows with one budget, and what follows from it."""
