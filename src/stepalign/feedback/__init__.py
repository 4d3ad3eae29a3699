"""What the self-teacher is shown: steps, critiques, their alignment, and the context designs."""
