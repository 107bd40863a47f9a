"""Training a student on a view by the DeepSpeed engine."""
