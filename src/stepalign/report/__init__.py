"""Pages and pictures: the report of a comparison, the token viewer, tables for terminal and papers. No torch."""
