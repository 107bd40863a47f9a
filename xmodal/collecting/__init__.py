"""Collecting posts from live streams."""
