"""Sets of domains: layout and its faults, DomainBed's splits, minibatches, and images that leak."""

import itertools

import numpy as np
import PIL.Image
import pytest

from soups.data import (
    Dataset,
    augmented,
    check_no_leak,
    domainbed_augmentation,
    environments,
    load_domains,
    minibatches,
)
from soups.data.batches import BatchIterator
from soups.data.domainbed import SETS, seed_hash

CLASSES = ("ant", "bee", "cow")


def _write(root, domains=("art", "photo", "sketch"), classes=CLASSES, count=4, size=10, seed=0):
    """Write a set of random images, of which no two are the same."""
    rng = np.random.default_rng(seed)
    for domain, name, number in itertools.product(domains, classes, range(count)):
        path = root / domain / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (size, size + 3, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def data_dir(tmp_path):
    _write(tmp_path / "drawn")
    return tmp_path


# --- Sets -------------------------------------------------------------------------------------------------------------


def test_domains_are_sorted_and_resized_bilinearly_without_their_ratio(data_dir):
    data = load_domains(data_dir, "drawn", image_size=6)
    assert [one.name for one in data] == [one.environment for one in data] == ["art", "photo", "sketch"]
    assert (data.class_names, len(data)) == (CLASSES, 3)
    photo = data["photo"]
    assert photo is data[1] and photo.data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert photo.files[4:6] == ("bee/0.png", "bee/1.png")
    with PIL.Image.open(data_dir / "drawn" / "photo" / "bee" / "1.png") as image:
        expected = image.resize((6, 6), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(photo.data.images[5], np.asarray(expected))


def test_digests_are_of_the_decoded_pixels_whatever_size_is_asked_for(data_dir):
    small, large = (load_domains(data_dir, "drawn", image_size=size) for size in (4, 8))
    assert small["art"].digests == large["art"].digests
    assert len({digest for one in small for digest in one.digests}) == 36
    assert small.digest() == large.digest()
    (data_dir / "drawn" / "art" / "ant" / "0.png").unlink()
    assert load_domains(data_dir, "drawn", image_size=4).digest() != small.digest()


@pytest.mark.parametrize("name", SETS)
def test_known_sets_have_folders_and_environments_of_their_own(tmp_path, name):
    known = SETS[name]
    domains = [f"{letter}_{number}" for number, letter in enumerate("abcdef"[: len(known.environments)])]
    _write(tmp_path / known.folder, domains, count=1)
    data = load_domains(tmp_path, name, image_size=4)
    assert [(one.environment, one.name) for one in data] == list(zip(known.environments, domains, strict=True))
    assert data[known.environments[1]] is data[domains[1]] is data[1]
    _write(tmp_path / known.folder, ["zoo"], count=1)
    with pytest.raises(ValueError, match=rf"{name} has {len(domains)} domains, .* {len(domains) + 1} folders: .*zoo$"):
        load_domains(tmp_path, name, image_size=4)


def test_listed_images_are_left_out_and_those_that_are_gone_already_are_no_fault(data_dir, tmp_path):
    listed = tmp_path / "duplicates.txt"
    listed.write_text("art/bee/1.png\n\nart/bee/3.png\nsketch/ant/77.png\n")
    data = load_domains(data_dir, "drawn", image_size=4, left_out=listed)
    whole = load_domains(data_dir, "drawn", image_size=4)
    assert [len(one) for one in data] == [10, 12, 12]
    kept = [at for at, file in enumerate(whole["art"].files) if file not in ("bee/1.png", "bee/3.png")]
    assert data["art"].files == tuple(whole["art"].files[at] for at in kept)
    np.testing.assert_array_equal(data["art"].data.images, whole["art"].data.images[kept])
    assert data["art"].digests == tuple(whole["art"].digests[at] for at in kept)


def test_lists_of_another_set_and_of_whole_classes_are_refused(data_dir, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("art/bee/1.png\nclipart/bee/1.png\n")
    with pytest.raises(ValueError, match=r"list.txt: line 2 must be domain/class/image of .*drawn, not 'clipart/bee"):
        load_domains(data_dir, "drawn", image_size=4, left_out=listed)
    listed.write_text("".join(f"art/bee/{number}.png\n" for number in range(4)))
    with pytest.raises(ValueError, match="it leaves no images in art of the classes bee"):
        load_domains(data_dir, "drawn", image_size=4, left_out=listed)
    for place in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"left_out='{place}' is not a file: it must list images"):
            load_domains(data_dir, "drawn", image_size=4, left_out=place)


def _more(name):
    return lambda root: _write(root, ["photo"], [name])


def _without(path):
    def change(root):
        for file in (root / path).glob("*"):
            file.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            _more("owl"),
            ValueError,
            "drawn: the domains must have the same class folders, but art lacks owl, sketch lack",
        ),
        (_without("sketch/bee"), ValueError, r"sketch: no images directly in the class folders bee \(1 of 3\)"),
        (
            lambda root: (root / "kfold" / "art").mkdir(parents=True),
            ValueError,
            "folder kfold: move them one folder up",
        ),
        (
            lambda root: (root / "art" / "ant" / "0.png").write_text("no image"),
            ValueError,
            "0.png: cannot be read as an image",
        ),
    ],
    ids=["other classes", "an empty class", "packed", "a broken image"],
)
def test_odd_sets_are_errors_of_one_line(data_dir, change, error, says):
    change(data_dir / "drawn")
    with pytest.raises(error, match=says) as found:
        load_domains(data_dir, "drawn", image_size=4)
    assert "\n" not in str(found.value)


def test_missing_sets_say_what_there_is(data_dir):
    _write(data_dir / "PACS", "acps", count=1)
    _write(data_dir / "alone", ["art"])
    (data_dir / "hollow").mkdir()
    for name, error, says in [
        (
            "Drawn",
            FileNotFoundError,
            r"no set 'Drawn'; there are PACS, alone, drawn, hollow; the layout must be SET/dom",
        ),
        ("OfficeHome", FileNotFoundError, r"no set 'OfficeHome' \(its folder is office_home\); there are PACS, alone"),
        ("", FileNotFoundError, "no set ''; there are"),
        ("alone", ValueError, "alone: a set needs at least 2 domains, but there is only art"),
        ("hollow", FileNotFoundError, "hollow: no domain folders in it; the layout must be domain/class/file"),
    ]:
        with pytest.raises(error, match=says) as found:
            load_domains(data_dir, name, image_size=4)
        assert "\n" not in str(found.value)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of sets of domains"):
        load_domains(data_dir / "nowhere", "drawn", image_size=4)


def test_domains_that_do_not_exist_are_refused(data_dir):
    data = load_domains(data_dir, "drawn", image_size=4)
    with pytest.raises(ValueError, match=r"domain of drawn: .*'photos'"):
        environments(data, 0, ["photos"])
    for number in (3, -1):
        with pytest.raises(ValueError, match=f"drawn has no domain {number}: its 3 domains count from 0"):
            environments(data, 0, [number])
    with pytest.raises(ValueError, match="all 3 domains of drawn are test domains: leave one"):
        environments(data, 0, ["art", 1, "sketch"])


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_environments_are_split_as_domainbed_splits_them(data_dir):
    data = load_domains(data_dir, "drawn", image_size=4)
    for place, environment in enumerate(environments(data, 2, ["photo"])):
        order = list(range(12))
        np.random.RandomState(seed_hash(2, place)).shuffle(order)
        domain = data[place]
        assert (environment.name, environment.is_test) == (domain.name, domain.name == "photo")
        np.testing.assert_array_equal(environment.held_out.images, domain.data.images[order[:2]])
        np.testing.assert_array_equal(environment.train.labels, domain.data.labels[order[2:]])
        np.testing.assert_array_equal(environment.train.images, domain.data.images[order[2:]])


def test_a_domain_too_small_to_hold_any_out_is_refused(tmp_path):
    _write(tmp_path / "tiny", count=1)
    with pytest.raises(ValueError, match="domain art of tiny has only 3 images: none can be held out"):
        environments(load_domains(tmp_path, "tiny", image_size=4), 0)


def test_only_the_held_out_part_of_training_domains_is_augmented(data_dir):
    data = load_domains(data_dir, "drawn", image_size=6)
    plain = environments(data, 0, ["photo"])
    seen = environments(data, 0, ["photo"], augment_validation=domainbed_augmentation(6))
    again = environments(data, 0, ["photo"], augment_validation=domainbed_augmentation(6))
    for before, after, repeated in zip(plain, seen, again, strict=True):
        np.testing.assert_array_equal(before.train.images, after.train.images)
        np.testing.assert_array_equal(before.held_out.labels, after.held_out.labels)
        np.testing.assert_array_equal(after.held_out.images, repeated.held_out.images)
        assert np.array_equal(before.held_out.images, after.held_out.images) == before.is_test


def test_each_image_is_augmented_by_its_place_and_the_seed_alone(rng):
    images = rng.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    data = Dataset(images, np.array([0, 1, 0, 1, 0], np.int32), ("a", "b"))
    few = data.take(np.arange(3))
    change = domainbed_augmentation(6)
    np.testing.assert_array_equal(augmented(data, change, 3).images[:3], augmented(few, change, 3).images)
    assert not np.array_equal(augmented(data, change, 3).images, augmented(data, change, 4).images)


# --- Minibatches ------------------------------------------------------------------------------------------------------


def _parts(*counts, size=4):
    """Make parts whose images name their part and place."""
    made = []
    for part, count in enumerate(counts):
        images = np.zeros((count, size, size, 3), np.uint8)
        images[..., 0], images[..., 1] = part, np.arange(count)[:, None, None]
        made.append(Dataset(images, np.arange(count, dtype=np.int32) % 2, ("a", "b")))
    return made


def test_a_batch_has_as_many_images_of_each_part_one_part_after_the_other():
    batch = next(iter(minibatches(_parts(9, 5, 7), 4, seed=0)))
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == {
        "image": (np.uint8, (12, 4, 4, 3)),
        "label": (np.int32, (12,)),
        "index": (np.int32, (12,)),
    }
    assert batch["image"][:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 1], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 2)


def test_images_are_drawn_with_replacement_evenly_and_by_independent_streams():
    batches = list(itertools.islice(minibatches(_parts(10, 10), 50, seed=1), 100))
    drawn = np.stack([batch["index"].reshape(2, 50) for batch in batches], 1)
    for stream in drawn.reshape(2, -1):
        counts = np.bincount(stream, minlength=10)
        assert (abs(counts - 500) < 85).all()  # 4 standard deviations
    assert not np.array_equal(drawn[0], drawn[1])
    assert abs((drawn[0] == drawn[1]).mean() - 0.1) < 0.02  # 4.7 standard deviations


def test_batches_are_those_of_their_step_wherever_one_begins_and_whoever_shares_them():
    parts, options = _parts(9, 5), {"seed": 3, "random_transform": domainbed_augmentation(4)}
    wanted = list(itertools.islice(minibatches(parts, 4, **options), 5))
    iterator = iter(minibatches(parts, 4, **options))
    assert isinstance(iterator, BatchIterator)
    iterator.set_state({"next_index": 3})
    shares = [minibatches(parts, 4, **options, process_index=index, process_count=4) for index in range(4)]
    for step, batch in enumerate(wanted):
        joined = [share.batch(step) for share in shares]
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([one[name] for one in joined]), value)
    resumed = next(iterator)
    for name, value in wanted[3].items():
        np.testing.assert_array_equal(resumed[name], value)
    assert not np.array_equal(wanted[0]["image"], next(iter(minibatches(parts, 4, **options | {"seed": 4})))["image"])


@pytest.mark.parametrize(
    ("parts", "options", "says"),
    [
        ([], {}, "at least one part"),
        ([_parts(3)[0], _parts(3, size=5)[0]], {}, "same classes and images of one shape"),
        (_parts(3), {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (_parts(3), {"seed": 2**32}, r"seed must be in \[0, 4294967295\]"),
        (_parts(3), {"process_index": 2, "process_count": 2}, "process 2 of 2 has no even share"),
        (_parts(3), {"process_index": 0, "process_count": 3}, "process 0 of 3 has no even share of a batch of 1 x 4"),
    ],
)
def test_what_no_minibatch_can_be_drawn_from_is_refused(parts, options, says):
    with pytest.raises(ValueError, match=says):
        minibatches(parts, **{"batch_size": 4, "seed": 0} | options)


# --- Leaks ------------------------------------------------------------------------------------------------------------


def test_images_of_a_test_domain_in_an_auxiliary_set_are_refused_whatever_they_are_called(data_dir):
    _write(data_dir / "other", classes=("x", "y"), seed=1)
    data, other = (load_domains(data_dir, name, image_size=size) for name, size in (("drawn", 6), ("other", 4)))
    check_no_leak(data, {"other": other})
    check_no_leak(data["art"], {"photo": data["photo"], "other": other})
    with PIL.Image.open(data_dir / "drawn" / "sketch" / "cow" / "2.png") as image:
        image.save(data_dir / "other" / "art" / "x" / "new name.bmp")
    other = load_domains(data_dir, "other", image_size=4)
    message = r"image of the test set drawn .* but other has 1 of them \(cow/2.png is art/x/new name.bmp there\)"
    with pytest.raises(ValueError, match=message):
        check_no_leak(data, {"other": other})
    with pytest.raises(ValueError, match=r"no image of the test set sketch may"):
        check_no_leak(data["sketch"], {"other": other})
    check_no_leak(data["art"], {"other": other})
    with pytest.raises(ValueError, match=r"the whole has 12 of them .*; other has"):
        check_no_leak(data["sketch"], {"the whole": data, "other": other})
