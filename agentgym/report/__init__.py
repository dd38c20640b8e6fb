"""One HTML page that shows a run or an evaluation: figures with intervals, learning curves, and every turn tree."""

from agentgym.report.page import Curve, Series, Table, before_after, tree_record, write_report

__all__ = ["Curve", "Series", "Table", "before_after", "tree_record", "write_report"]
