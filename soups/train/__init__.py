"""Train members: any loss, any batch, one or several lanes; sweeps, probes, and averages along a trajectory."""

from soups.train import search as search
from soups.train.classification import Classification as Classification
from soups.train.lanes import Lanes as Lanes
from soups.train.language import NextToken as NextToken
from soups.train.loop import fit as fit
from soups.train.probe import extract_features as extract_features
from soups.train.probe import lp_ft as lp_ft
from soups.train.probe import probe_on_features as probe_on_features
from soups.train.regression import Regression as Regression
from soups.train.regression import ridge_on_features as ridge_on_features
from soups.train.sharding import param_shardings as param_shardings
from soups.train.step import Training as Training
from soups.train.step import init_state as init_state
from soups.train.step import training_step as training_step
from soups.train.swad import Swad as Swad
from soups.train.sweeps import sweep as sweep
from soups.train.text_to_text import TextToText as TextToText
from soups.train.trajectory import averages as averages
from soups.train.workers import Exchange as Exchange
from soups.train.workers import fit_workers as fit_workers
