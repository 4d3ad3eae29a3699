"""Arithmetic word problems: a generator, its solutions and references, and the truth about every step."""
