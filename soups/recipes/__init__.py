"""Merge members: one file for each family of recipes."""

from soups.recipes.averages import ema as ema
from soups.recipes.averages import running_mean as running_mean
from soups.recipes.averages import uniform as uniform
from soups.recipes.averages import weighted as weighted
from soups.recipes.greedy import greedy as greedy
from soups.recipes.interpolation import interpolate as interpolate
from soups.recipes.interpolation import wise_ft as wise_ft
from soups.recipes.learned import learned as learned
from soups.recipes.soup import Soup as Soup
from soups.recipes.spherical import geometric_median as geometric_median
from soups.recipes.spherical import karcher as karcher
from soups.recipes.spherical import model_stock as model_stock
from soups.recipes.spherical import multislerp as multislerp
from soups.recipes.spherical import nuslerp as nuslerp
from soups.recipes.task_vectors import breadcrumbs as breadcrumbs
from soups.recipes.task_vectors import combine_task_vectors as combine_task_vectors
from soups.recipes.task_vectors import dare as dare
from soups.recipes.task_vectors import della as della
from soups.recipes.task_vectors import task_arithmetic as task_arithmetic
from soups.recipes.task_vectors import ties as ties
