"""Make tables, figures and a page from the results file of a study, and from nothing else."""

from soups.lazy import extra

with extra("report"):
    import matplotlib
    import rich

# figures register themselves, in the order of the page
# isort: off
from soups.report import draw_rows, draw_lines, draw_weights, draw_recycling, draw_reliability

# isort: on
from soups.report.draw_diagnosis import draw_diagnosis as draw_diagnosis
from soups.report.figures import draw as draw
from soups.report.figures import figure as figure
from soups.report.page import write_report as write_report
from soups.report.results import check as check
from soups.report.results import load_results as load_results
from soups.report.tables import rows_table as rows_table
from soups.report.terminal import print_table as print_table
from soups.report.words import leading as leading
from soups.report.words import sentences as sentences
