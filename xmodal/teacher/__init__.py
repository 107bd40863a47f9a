"""Text teachers: from a post's text to its soft label."""
