"""Adam and its descendants, element by element."""
