"""Choosing the batch among the candidates: one signature for every method.

Pure functions of values, the same for any order of the candidates: positions are ranks by key, and what is random is a
hash.
"""

from dal.selectors.batch import choose, select
from dal.selectors.facility_location import LEAF_ROWS
from dal.selectors.problem import DUPLICATE_DISTANCE, Problem

__all__ = ["DUPLICATE_DISTANCE", "LEAF_ROWS", "Problem", "choose", "select"]
