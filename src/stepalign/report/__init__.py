"""Pages and pictures: the report of a comparison, the token viewer, tables for terminal and Markdown. No torch."""

from stepalign.report.page import write_report, write_token_page
from stepalign.report.table import results_markdown, results_table
from stepalign.report.terminal import print_rollout

__all__ = ["print_rollout", "results_markdown", "results_table", "write_report", "write_token_page"]
