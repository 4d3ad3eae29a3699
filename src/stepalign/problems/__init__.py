"""Problems in: rows of files and data sets, their columns, sets and selection."""
