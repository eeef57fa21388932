"""Reports of studies, as one self-contained page."""

from reptrain.report.page import build_report

__all__ = ["build_report"]
