"""Share what is slow to make among the tests of the data."""

import pytest

from soups.data import tfds_source


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """Give a TFDS directory in which both sets of digits are prepared."""
    path = tmp_path_factory.mktemp("tensorflow_datasets")
    for name in ("mnist_5k", "optdigits"):
        tfds_source(name, "train", data_dir=path)
    return path
