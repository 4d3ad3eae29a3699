"""``stepalign signal``, and the same for a notebook. Nothing is imported here: the first checks load no torch."""
