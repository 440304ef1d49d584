"""Train members: any loss, any batch, one or several lanes; sweeps, probes, and averages along a trajectory."""

from soups.train import search
from soups.train.classification import Classification
from soups.train.lanes import Lanes
from soups.train.loop import fit
from soups.train.probe import extract_features, lp_ft, probe_on_features
from soups.train.sharding import param_shardings
from soups.train.step import Training, init_state, training_step
from soups.train.sweeps import sweep
from soups.train.trajectory import averages
