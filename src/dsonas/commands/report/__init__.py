"""A run as one HTML file to look at anywhere: what was found, how, how good, at what cost."""

from dsonas.commands.report.page import ReportError, write_report, write_run_report

__all__ = ["ReportError", "write_report", "write_run_report"]
