"""Fine-tune members: the training step, the loops, sweeps, and averages along a trajectory."""

from soups.finetune.loop import finetune as finetune
from soups.finetune.step import HYPERPARAMETERS as HYPERPARAMETERS
from soups.finetune.step import Training as Training
from soups.finetune.step import init_state as init_state
from soups.finetune.step import training_step as training_step
from soups.finetune.sweep import run_sweep as run_sweep
