"""The laws that every rule obeys on every case; a rule's own test file lists the cases.

CASES = [linear_case(5, 3, (4,)), ...]

@every_law(CASES)
def test_linear(laws):
    laws.check()
"""

from laws.case import Case, conv_case, conv_rows, linear_case, linear_rows
from laws.one_file import OneCall, laws_on
from laws.subject import Subject
from laws.suite import factor_is_the_jacobians_moment
from laws.table import LAWS, every_block_law, every_law, every_output_law
from laws.two_sided_table import every_two_sided_law
from laws.units import UnitCase

__all__ = [
    "LAWS",
    "Case",
    "OneCall",
    "Subject",
    "UnitCase",
    "conv_case",
    "conv_rows",
    "every_block_law",
    "every_law",
    "every_output_law",
    "every_two_sided_law",
    "factor_is_the_jacobians_moment",
    "laws_on",
    "linear_case",
    "linear_rows",
]
