"""Test over which axes arrays are cut, and what joins them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups.partition import axes_of, constrained, joined


@pytest.mark.parametrize(
    ("spec", "axes", "left"),
    [
        (P(), set(), P()),
        (P(None, "data"), {"data"}, P()),
        (P("pool", "data"), {"pool", "data"}, P("pool")),
        (P(("data", "pool"), None), {"data", "pool"}, P("pool")),
    ],
)
def test_what_is_joined_over_data_stays_cut_over_the_rest(mesh, spec, axes, left):
    assert axes_of(spec) == axes
    found = joined(NamedSharding(mesh, spec), {"data"})
    assert found.is_equivalent_to(NamedSharding(mesh, left), 2)


def test_an_array_is_laid_out_so_outside_and_within_a_mapped_function(mesh):
    array, rows = np.arange(64.0, dtype=np.float32).reshape(8, 8), NamedSharding(mesh, P("data"))
    with jax.set_mesh(jax.make_mesh((8,), ("other",), axis_types=(jax.sharding.AxisType.Auto,))):
        outside = jax.jit(lambda x: constrained(x, rows))(array)
    assert outside.sharding.is_equivalent_to(rows, 2)
    on_each = jax.shard_map(
        lambda x: constrained(2 * x, rows), mesh=mesh, in_specs=P("pool"), out_specs=P("pool"), axis_names={"pool"}
    )
    np.testing.assert_array_equal(jax.jit(on_each)(array), 2 * array)
