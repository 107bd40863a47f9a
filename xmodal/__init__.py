"""Image sentiment learned from the crowd: posts → soft labels → shards → view → student → evaluation → report."""

__version__ = "0.1.0"
