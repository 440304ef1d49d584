"""Read what a diagnosis found, for the tests of `soups.evaluate.diagnose`."""

import jax
import numpy as np

from soups import uniform


def kinds(diagnosis):
    """Return the kinds of all findings."""
    return {finding.kind for finding in diagnosis.findings}


def the(diagnosis, kind):
    """Return the one finding of a kind."""
    (found,) = [finding for finding in diagnosis.findings if finding.kind == kind]
    return found


def flat(params):
    """Return all weights as one vector in float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def check_keep(diagnosis, members):
    """Hold the verdict to its word: those to keep can be averaged."""
    assert len(diagnosis.keep) >= 2
    uniform({name: members[name] for name in diagnosis.keep})
