"""What a run or a search found, as one page, figures and CSV tables."""

from rayrec.report.page import ReportData, write_report
from rayrec.report.search_page import SearchReportData, write_search_report

__all__ = ["ReportData", "SearchReportData", "write_report", "write_search_report"]
