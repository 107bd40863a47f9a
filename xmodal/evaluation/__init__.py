"""Judging students on human-labelled pictures."""
