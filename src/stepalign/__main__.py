"""``python -m stepalign``."""

from stepalign.cli import main

main()
