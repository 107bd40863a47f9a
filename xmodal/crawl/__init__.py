"""Fetching the pictures of posts."""
