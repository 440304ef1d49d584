"""List what the room offers, and the signatures of declared methods; scripts/write_stub.py wrote this."""

from numpy.typing import ArrayLike

from soups.arguments import Members, PerMember, Trees
from soups.engine import Recipe as Recipe
from soups.recipes.adamerging import adamerge as adamerge
from soups.recipes.adamerging import adamerging as adamerging
from soups.recipes.averages import ema as ema
from soups.recipes.averages import running_mean as running_mean
from soups.recipes.averages import weighted as weighted
from soups.recipes.declare import METHODS as METHODS
from soups.recipes.declare import Inputs as Inputs
from soups.recipes.declare import method as method
from soups.recipes.evolve import evolve as evolve
from soups.recipes.fisher import fisher_information as fisher_information
from soups.recipes.greedy import greedy as greedy
from soups.recipes.interpolation import interpolate as interpolate
from soups.recipes.learned import learned as learned
from soups.recipes.localize_and_stitch import localize as localize
from soups.recipes.localize_and_stitch import localize_dataless as localize_dataless
from soups.recipes.localize_and_stitch import mask_overlap as mask_overlap
from soups.recipes.masks import emr as emr
from soups.recipes.masks import emr_restore as emr_restore
from soups.recipes.masks import tall_masks as tall_masks
from soups.recipes.permutation import check_function_unchanged as check_function_unchanged
from soups.recipes.permutation import permute as permute
from soups.recipes.permutation import spec_from_rules as spec_from_rules
from soups.recipes.rebasin import activation_matching as activation_matching
from soups.recipes.rebasin import align as align
from soups.recipes.rebasin import straight_through_matching as straight_through_matching
from soups.recipes.rebasin import weight_matching as weight_matching
from soups.recipes.regmean import regmean_pp as regmean_pp
from soups.recipes.soup import Soup as Soup
from soups.recipes.sparsify import Sparsifier
from soups.recipes.sparsify import drop as drop
from soups.recipes.sparsify import magprune as magprune
from soups.recipes.sparsify import outliers as outliers
from soups.recipes.sparsify import trim as trim
from soups.recipes.speculative import greedy_speculative as greedy_speculative
from soups.tree import Tree

def linear(
    members: Members, *, weights: PerMember[ArrayLike] = 1.0, normalize: bool = True, keep_first: str | None = None
) -> Tree: ...
def passthrough(members: Members, *, scale: PerMember[float] = 1.0, keep_first: str | None = None) -> Tree: ...
def uniform(members: Members, *, keep_first: str | None = None) -> Tree: ...
def consensus(
    members: Members,
    *,
    base: Tree,
    threshold: PerMember[ArrayLike] = 0.4,
    votes: int = 2,
    scale: ArrayLike = 0.3,
    keep_first: str | None = None,
) -> Tree: ...
def pcb(
    members: Members,
    *,
    base: Tree,
    density: float = 0.1,
    scale: PerMember[ArrayLike] = 1.0,
    scope: str = "model",
    keep_first: str | None = None,
) -> Tree: ...
def sce(members: Members, *, base: Tree, select_topk: float = 1.0, keep_first: str | None = None) -> Tree: ...
def arcee_fusion(members: Members, *, base: Tree, keep_first: str | None = None) -> Tree: ...
def magmax(members: Members, *, base: Tree, scale: ArrayLike = 0.5, keep_first: str | None = None) -> Tree: ...
def nearswap(members: Members, *, base: Tree, t: ArrayLike = 0.0001, keep_first: str | None = None) -> Tree: ...
def ram(members: Members, *, base: Tree, epsilon: float = 1e-05, keep_first: str | None = None) -> Tree: ...
def ram_plus(
    members: Members,
    *,
    base: Tree,
    epsilon: float = 1e-05,
    rescale: float = 0.1,
    limit: float = 0.2,
    scope: str = "leaf",
    keep_first: str | None = None,
) -> Tree: ...
def fisher(
    members: Members,
    fishers: Trees,
    *,
    weights: PerMember[ArrayLike] = 1.0,
    floor: PerMember[float] = 1e-06,
    normalize: bool = False,
    keep_first: str | None = None,
) -> Tree: ...
def fisher_interpolate(
    base: Tree,
    member: Tree,
    fisher_base: Tree,
    fisher_member: Tree,
    *,
    alpha: ArrayLike = 0.5,
    floor: float = 1e-06,
    normalize: bool = False,
    keep_first: str | None = None,
) -> Tree: ...
def model_stock(members: Members, *, base: Tree, scope: str = "leaf", keep_first: str | None = None) -> Tree: ...
def wise_ft(
    member: Tree, *, base: Tree, alpha: ArrayLike = 0.5, only: str = ".*", keep_first: str | None = None
) -> Tree: ...
def localize_and_stitch(
    members: Members, *, base: Tree, density: PerMember[float] = 0.05, only: str = ".*", keep_first: str | None = None
) -> Tree: ...
def stitch(members: Members, masks: Trees, *, base: Tree, keep_first: str | None = None) -> Tree: ...
def geometric_median(
    members: Members,
    *,
    weights: PerMember[ArrayLike] = 1.0,
    scope: str = "leaf",
    iterations: int = 100,
    keep_first: str | None = None,
) -> Tree: ...
def regmean(
    members: Members,
    grams: Trees,
    *,
    alpha: float = 0.9,
    weights: PerMember[ArrayLike] = 1.0,
    inputs: str = "first",
    keep_first: str | None = None,
) -> Tree: ...
def iso_c(
    members: Members, *, base: Tree, scale: ArrayLike = 1.0, only: str = ".*", keep_first: str | None = None
) -> Tree: ...
def tsv_merge(
    members: Members, *, base: Tree, scale: ArrayLike = 1.0, only: str = ".*", keep_first: str | None = None
) -> Tree: ...
def wudi(
    members: Members,
    *,
    base: Tree,
    steps: int = 300,
    learning_rate: float = 1e-05,
    scale: ArrayLike = 1.0,
    only: str = ".*",
    inputs: str = "first",
    keep_first: str | None = None,
) -> Tree: ...
def karcher(
    members: Members,
    *,
    base: Tree | None = None,
    scope: str = "leaf",
    iterations: int = 10,
    tolerance: float = 1e-05,
    least: float = 0.0,
    keep_first: str | None = None,
) -> Tree: ...
def multislerp(
    members: Members,
    *,
    base: Tree | None = None,
    weights: PerMember[ArrayLike] = 1.0,
    scope: str = "leaf",
    normalize: bool = True,
    epsilon: float = 0.0,
    keep_first: str | None = None,
) -> Tree: ...
def nuslerp(
    members: Members,
    *,
    base: Tree | None = None,
    weights: PerMember[ArrayLike] = 1.0,
    scope: str = "leaf",
    keep_first: str | None = None,
) -> Tree: ...
def slerp(
    member: Tree,
    *,
    base: Tree,
    t: ArrayLike,
    scope: str = "leaf",
    parallel: float = 0.999999,
    keep_first: str | None = None,
) -> Tree: ...
def breadcrumbs(
    members: Members,
    *,
    base: Tree,
    density: PerMember[float] = 0.9,
    gamma: PerMember[float] = 0.01,
    scale: ArrayLike = 0.3,
    weights: PerMember[ArrayLike] = 1.0,
    keep_first: str | None = None,
) -> Tree: ...
def combine_task_vectors(
    members: Members,
    *,
    base: Tree,
    sparsify: PerMember[Sparsifier] = ...,
    weights: PerMember[ArrayLike] = 1.0,
    elect: bool = False,
    normalize: bool = False,
    scale: ArrayLike = 1.0,
    tie: str = "majority",
    scope: str = "model",
    keep_first: str | None = None,
) -> Tree: ...
def dare(
    members: Members,
    *,
    base: Tree,
    density: PerMember[float] = 0.1,
    scale: ArrayLike = 1.0,
    weights: PerMember[ArrayLike] = 1.0,
    elect: bool = False,
    seed: int = 0,
    keep_first: str | None = None,
) -> Tree: ...
def della(
    members: Members,
    *,
    base: Tree,
    density: PerMember[float] = 0.7,
    epsilon: PerMember[float] = 0.07,
    scale: ArrayLike = 1.1,
    weights: PerMember[ArrayLike] = 1.0,
    seed: int = 0,
    keep_first: str | None = None,
) -> Tree: ...
def task_arithmetic(
    members: Members,
    *,
    base: Tree,
    scale: ArrayLike = 0.3,
    weights: PerMember[ArrayLike] = 1.0,
    keep_first: str | None = None,
) -> Tree: ...
def ties(
    members: Members,
    *,
    base: Tree,
    density: PerMember[float] = 0.2,
    scale: ArrayLike = 1.0,
    weights: PerMember[ArrayLike] = 1.0,
    normalize: bool = True,
    scope: str = "model",
    keep_first: str | None = None,
) -> Tree: ...
