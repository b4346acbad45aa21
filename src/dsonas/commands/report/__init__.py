"""A run as one HTML file to look at anywhere: what was found, how, how good, at what cost.

``write_report`` collects what a run folder holds (``collect``), runs the network on its test images
(``examine``), draws (``blockdrawing``, ``skeleton``, ``charts``, ``confusion``) and fills templates
(``page``).
"""

from dsonas.commands.report.page import ReportError, write_report, write_run_report

__all__ = ["ReportError", "write_report", "write_run_report"]
