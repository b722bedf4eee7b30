"""What a run, a search, an experiment or a benchmark found, as one page, figures and CSV tables."""

from rayrec.report.benchmark_page import BenchmarkReportData, write_benchmark_report
from rayrec.report.experiment_gallery import Evidence
from rayrec.report.experiment_page import ExperimentReportData, write_experiment_report
from rayrec.report.list_experiment_page import ListExperimentReportData, write_list_experiment_report
from rayrec.report.list_page import ListReportData, write_list_report
from rayrec.report.page import ReportData, write_report
from rayrec.report.search_page import SearchReportData, write_search_report

__all__ = [
    "BenchmarkReportData",
    "Evidence",
    "ExperimentReportData",
    "ListExperimentReportData",
    "ListReportData",
    "ReportData",
    "SearchReportData",
    "write_benchmark_report",
    "write_experiment_report",
    "write_list_experiment_report",
    "write_list_report",
    "write_report",
    "write_search_report",
]
