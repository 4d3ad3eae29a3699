"""``stepalign signal``."""
