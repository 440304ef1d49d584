"""Fine-tune members: the training step, the loops, sweeps, and averages along a trajectory."""

from soups.train.lanes import finetune_lanes as finetune_lanes
from soups.train.loop import finetune as finetune
from soups.train.probe import extract_features as extract_features
from soups.train.probe import probe_on_features as probe_on_features
from soups.train.resumable import finetune_resumable as finetune_resumable
from soups.train.sharding import param_shardings as param_shardings
from soups.train.step import HYPERPARAMETERS as HYPERPARAMETERS
from soups.train.step import Training as Training
from soups.train.step import init_state as init_state
from soups.train.step import training_step as training_step
from soups.train.sweep import run_sweep as run_sweep
from soups.train.trajectory import averages as averages
