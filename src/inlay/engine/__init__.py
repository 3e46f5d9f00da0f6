"""Loss and gradient of a batch."""
