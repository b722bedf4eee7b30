"""What a run found, as one page, figures and CSV tables."""

from rayrec.report.page import ReportData, write_report

__all__ = ["ReportData", "write_report"]
