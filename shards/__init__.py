"""The store: WebDataset tars, their index, views over them, and resumable streaming. Knows nothing of sentiment."""
