"""Which samples a student learns from: datasets → view."""
