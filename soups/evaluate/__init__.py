"""Measure weights: metrics and calibration, ensembles, diversity, connectivity."""

from soups.evaluate.cache import LogitCache as LogitCache
from soups.evaluate.classification import accuracy as accuracy
from soups.evaluate.classification import brier as brier
from soups.evaluate.classification import correct as correct
from soups.evaluate.classification import ece as ece
from soups.evaluate.classification import fit_temperature as fit_temperature
from soups.evaluate.classification import metrics as metrics
from soups.evaluate.classification import nll as nll
from soups.evaluate.classification import per_class as per_class
from soups.evaluate.classification import per_class_accuracy as per_class_accuracy
from soups.evaluate.classification import reliability as reliability
from soups.evaluate.classification import top_5 as top_5
from soups.evaluate.classification import top_k as top_k
from soups.evaluate.connectivity import Plane as Plane
from soups.evaluate.connectivity import angle as angle
from soups.evaluate.connectivity import angles as angles
from soups.evaluate.connectivity import barrier as barrier
from soups.evaluate.connectivity import barriers as barriers
from soups.evaluate.connectivity import interpolation_advantage as interpolation_advantage
from soups.evaluate.connectivity import norms as norms
from soups.evaluate.connectivity import path as path
from soups.evaluate.connectivity import path_barrier as path_barrier
from soups.evaluate.connectivity import plane as plane
from soups.evaluate.connectivity import plane_grid as plane_grid
from soups.evaluate.diagnose import Diagnosis as Diagnosis
from soups.evaluate.diagnose import Finding as Finding
from soups.evaluate.diagnose import diagnose as diagnose
from soups.evaluate.diversity import kappa_complement as kappa_complement
from soups.evaluate.diversity import mean_pairwise as mean_pairwise
from soups.evaluate.diversity import pairwise_diversity as pairwise_diversity
from soups.evaluate.diversity import prediction_diversity as prediction_diversity
from soups.evaluate.diversity import q_diversity as q_diversity
from soups.evaluate.diversity import q_statistic as q_statistic
from soups.evaluate.diversity import ratio_error as ratio_error
from soups.evaluate.ensembles import Ensemble as Ensemble
from soups.evaluate.ensembles import ensemble_logits as ensemble_logits
from soups.evaluate.ensembles import greedy_ensemble as greedy_ensemble
from soups.evaluate.evaluator import Evaluator as Evaluator
from soups.evaluate.measures import METRICS as METRICS
from soups.evaluate.measures import Metric as Metric
from soups.evaluate.measures import exact_match as exact_match
from soups.evaluate.measures import f1 as f1
from soups.evaluate.measures import macro_f1 as macro_f1
from soups.evaluate.measures import mae as mae
from soups.evaluate.measures import matthews as matthews
from soups.evaluate.measures import mean_average_precision as mean_average_precision
from soups.evaluate.measures import micro_f1 as micro_f1
from soups.evaluate.measures import mse as mse
from soups.evaluate.measures import pearson as pearson
from soups.evaluate.measures import perplexity as perplexity
from soups.evaluate.measures import r2 as r2
from soups.evaluate.measures import spearman as spearman
from soups.evaluate.measures import token_accuracy as token_accuracy
from soups.evaluate.measures import token_nll as token_nll
from soups.evaluate.measures import token_scores as token_scores
from soups.evaluate.multiple_choice import ChoiceScorer as ChoiceScorer
from soups.evaluate.multiple_choice import choice_metrics as choice_metrics
from soups.evaluate.multiple_choice import choice_values as choice_values
from soups.evaluate.ranking import gains as gains
from soups.evaluate.ranking import rank_by_score as rank_by_score
from soups.evaluate.ranking import rank_by_similarity as rank_by_similarity
from soups.evaluate.ranking import rank_greedily as rank_greedily
from soups.evaluate.ranking import regret as regret
from soups.evaluate.ranking import split_half as split_half
from soups.recipes._scores import NotFiniteError as NotFiniteError


def __getattr__(name: str):
    if name == "ParallelEvaluator":
        raise ImportError(
            "ParallelEvaluator(apply_fn, dataset, groups) is Evaluator(apply_fn, dataset, width=groups), and what it "
            "gave when it was called with a list is .many(list)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
