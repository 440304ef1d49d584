"""Average networks that were trained independently, before and after their units are matched."""

from soups.experiments.rebasin.run import check_config as check_config
from soups.experiments.rebasin.run import run as run
