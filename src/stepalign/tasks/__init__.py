"""Problems in, verdicts out."""
