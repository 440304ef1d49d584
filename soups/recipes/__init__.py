"""Merge members: one file for each family of recipes.

All raise ValueErrors that name what is wrong: no members, trees of different structures, NaN or infinity, integer
leaves that differ, not one value for each member, a setting of another kind or outside the range that is stated. A
journal that cannot be written is an OSError with its path.
"""

from soups.engine import Recipe
from soups.recipes.adamerging import adamerge, adamerging
from soups.recipes.averages import ema, linear, passthrough, running_mean, uniform, weighted
from soups.recipes.consensus import consensus, pcb, sce
from soups.recipes.declare import METHODS, Inputs, method
from soups.recipes.differences import arcee_fusion, magmax, nearswap, ram, ram_plus
from soups.recipes.evolve import evolve
from soups.recipes.fisher import fisher, fisher_information, fisher_interpolate
from soups.recipes.greedy import greedy
from soups.recipes.interpolation import interpolate, model_stock, wise_ft
from soups.recipes.learned import learned
from soups.recipes.localize_and_stitch import localize, localize_and_stitch, localize_dataless, mask_overlap, stitch
from soups.recipes.masks import emr, emr_restore, tall_masks
from soups.recipes.median import geometric_median
from soups.recipes.permutation import check_function_unchanged, permute, spec_from_rules
from soups.recipes.rebasin import activation_matching, align, straight_through_matching, weight_matching
from soups.recipes.regmean import regmean, regmean_pp
from soups.recipes.soup import Soup
from soups.recipes.sparsify import drop, magprune, outliers, trim
from soups.recipes.spectral import iso_c, tsv_merge, wudi
from soups.recipes.speculative import greedy_speculative
from soups.recipes.spherical import karcher, multislerp, nuslerp, slerp
from soups.recipes.task_vectors import breadcrumbs, combine_task_vectors, dare, della, task_arithmetic, ties
