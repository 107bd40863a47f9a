"""Posts and how they are read."""
