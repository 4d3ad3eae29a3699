"""Answers of mathematics: extracted, read, compared."""
