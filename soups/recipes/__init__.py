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
