"""From problems to Samples."""
