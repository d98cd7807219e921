"""The report: one self-contained HTML file, drawn only from the files of a run folder."""

from understudy.report.write import write_report

__all__ = ["write_report"]
