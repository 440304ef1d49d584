"""Fine-tune members: the training step, the loops, sweeps, and averages along a trajectory."""

from soups.finetune.lanes import finetune_lanes as finetune_lanes
from soups.finetune.loop import finetune as finetune
from soups.finetune.probe import extract_features as extract_features
from soups.finetune.probe import probe_on_features as probe_on_features
from soups.finetune.resumable import finetune_resumable as finetune_resumable
from soups.finetune.sharding import param_shardings as param_shardings
from soups.finetune.step import HYPERPARAMETERS as HYPERPARAMETERS
from soups.finetune.step import Training as Training
from soups.finetune.step import init_state as init_state
from soups.finetune.step import training_step as training_step
from soups.finetune.sweep import run_sweep as run_sweep
from soups.finetune.trajectory import averages as averages
