"""Average the weights of fine-tuned networks: pools, soups and what is measured on them."""

from soups import tree as tree
from soups.pool import Pool as Pool
from soups.pool import PoolCorruptionError as PoolCorruptionError
from soups.pool import merge as merge
from soups.recipes import Soup as Soup
from soups.recipes import activation_matching as activation_matching
from soups.recipes import adamerge as adamerge
from soups.recipes import adamerging as adamerging
from soups.recipes import align as align
from soups.recipes import breadcrumbs as breadcrumbs
from soups.recipes import check_function_unchanged as check_function_unchanged
from soups.recipes import combine_task_vectors as combine_task_vectors
from soups.recipes import dare as dare
from soups.recipes import della as della
from soups.recipes import ema as ema
from soups.recipes import fisher as fisher
from soups.recipes import fisher_information as fisher_information
from soups.recipes import fisher_interpolate as fisher_interpolate
from soups.recipes import geometric_median as geometric_median
from soups.recipes import greedy as greedy
from soups.recipes import interpolate as interpolate
from soups.recipes import karcher as karcher
from soups.recipes import learned as learned
from soups.recipes import localize as localize
from soups.recipes import localize_dataless as localize_dataless
from soups.recipes import mask_overlap as mask_overlap
from soups.recipes import model_stock as model_stock
from soups.recipes import multislerp as multislerp
from soups.recipes import nuslerp as nuslerp
from soups.recipes import permute as permute
from soups.recipes import regmean as regmean
from soups.recipes import regmean_pp as regmean_pp
from soups.recipes import running_mean as running_mean
from soups.recipes import spec_from_rules as spec_from_rules
from soups.recipes import stitch as stitch
from soups.recipes import straight_through_matching as straight_through_matching
from soups.recipes import task_arithmetic as task_arithmetic
from soups.recipes import ties as ties
from soups.recipes import uniform as uniform
from soups.recipes import weight_matching as weight_matching
from soups.recipes import weighted as weighted
from soups.recipes import wise_ft as wise_ft

__version__ = "0.1.0"
