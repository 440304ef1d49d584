"""Make tables, figures and a page from the results file of an experiment, and from nothing else."""

from soups.report.again import report_again as report_again
from soups.report.draw_diagnosis import draw_diagnosis as draw_diagnosis
from soups.report.results import check as check
from soups.report.results import load_results as load_results
from soups.report.tables import print_table as print_table
from soups.report.tables import rows_table as rows_table
from soups.report.write import write_report as write_report
