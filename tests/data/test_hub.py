"""hfds/NAME: data sets of the Hugging Face Hub, by way of folders in its formats; no request is made."""

import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pictures import encoded, picture
from repmlp.data import Transformed, eval_transform, load_data
from repmlp.data.sets import CACHE

COLOR = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}
#: Two workers on one core are slow, but right; pyarrow has threads when they are forked, but does not use them there.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork\\(\\):DeprecationWarning"),
]


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs datasets, .*pip install '\.\[hub\]'"):
        load_data("hfds/someone/some")


@pytest.fixture
def datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def write(datasets, tmp_path):
    """Parquet files, one a split, of images picture(0), picture(1) ... and labels."""

    def write(labels, label="label", splits=("train", "test"), broken=()):
        kinds = datasets.Features(
            {"note": datasets.Value("string"), "img": datasets.Image(), label: labels.pop("kind")}
        )
        values = labels.pop("values")
        files = [encoded(picture(i)) for i in range(len(values))]
        files = [file[: len(file) // 2] if i in broken else file for i, file in enumerate(files)]
        rows = {"note": ["x"] * len(values), "img": [{"bytes": file, "path": None} for file in files], label: values}
        (tmp_path / "set").mkdir(exist_ok=True)
        for split in splits:
            datasets.Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "set" / f"{split}.parquet")
        return f"hfds/{tmp_path / 'set'}"

    return write


def names(datasets, values=(0, 1, 1, 0)):
    return {"kind": datasets.ClassLabel(names=["cat", "dog"]), "values": list(values)}


@pytest.mark.parametrize(("held_out", "workers"), [("validation", 0), ("test", 2)])
def test_images_labels_and_class_names(datasets, write, tmp_path, held_out, workers):
    data = load_data(write(names(datasets), "fine_label", ("train", held_out)), tmp_path / "cache")
    assert (len(data.train), len(data.test), data.class_names) == (4, 4, ("cat", "dog"))
    assert np.array_equal(data.train[2][0], picture(2))
    pixels = np.stack([picture(i) for i in range(4)]) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    loader = DataLoader(Transformed(data.test, eval_transform(COLOR)), batch_size=3, num_workers=workers)
    assert [labels.tolist() for _, labels in loader] == [[0, 1, 1], [0]]


def test_a_folder_of_image_files(datasets, folders, tmp_path_factory):
    data = load_data(f"hfds/{folders}", tmp_path_factory.mktemp("cache"))
    assert (len(data.train), data.class_names) == (6, ("cat", "dog"))
    assert np.array_equal(data.train[5][0], picture(5))


def test_labels_that_are_numbers(datasets, write, tmp_path):
    data = load_data(write({"kind": datasets.Value("int64"), "values": [0, 2, 1]}), tmp_path / "cache")
    assert data.class_names == ("0", "1", "2")
    assert [data.train[i][1] for i in range(3)] == [0, 2, 1]


def test_what_cannot_be_used(datasets, write, tmp_path):
    with pytest.raises(ValueError, match=r"has the splits train: it needs train, and val or validation or test"):
        load_data(write(names(datasets), splits=("train",)), tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"columns note \(string\), img .*, label \(string\): it needs one of images and"
    ):
        load_data(write({"kind": datasets.Value("string"), "values": ["cat", "dog"]}), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"has the labels -1, its classes are 0 to 1"):
        load_data(write(names(datasets, [0, -1])), tmp_path / "cache")
    (tmp_path / "other" / "train-0.parquet").parent.mkdir()
    (tmp_path / "other" / "train-0.parquet").write_bytes(b"PAR1 of another kind PAR1")
    with pytest.raises(FileNotFoundError, match=r"no data set .*other: pass download=True"):
        load_data(f"hfds/{tmp_path / 'other'}", tmp_path / "cache")


def test_broken_images_stop_or_are_left_out(datasets, write, tmp_path):
    name = write(names(datasets), broken=(1,))
    with pytest.raises(
        ValueError, match=r"image 1 of \S+ \(train\) is not an image that can be read .*bad_images='skip'"
    ):
        load_data(name, tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"2 of 8 images cannot be read .*: image 1 of \S+ \(train\), image 1 of"):
        data = load_data(name, tmp_path / "cache", bad_images="skip")
    assert [data.test[i][1] for i in range(3)] == [0, 1, 0]
    assert [path.name for path in (tmp_path / "cache").rglob(CACHE)] == [CACHE]  # beside the Arrow files


def test_a_set_that_is_not_there_is_not_asked_for_unless_downloads_are_allowed(datasets, tmp_path, monkeypatch):
    requests = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *args, **kwargs: requests.append(host))
    with pytest.raises(
        FileNotFoundError, match=r"no data set someone/some: pass download=True to get it from the Hub, or give"
    ):
        load_data("hfds/someone/some", tmp_path)
    assert requests == []
    import huggingface_hub

    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # as it was before


def test_a_set_that_was_downloaded_before_needs_no_download(datasets, write, tmp_path):
    local = write(names(datasets)).removeprefix("hfds/")
    made = datasets.load_dataset(local, cache_dir=tmp_path / "made")["train"].cache_files[0]["filename"]
    folder = Path(made).parents[3]
    folder.rename(tmp_path / "made" / "someone___set")
    data = load_data("hfds/someone/set", tmp_path / "made")
    assert (len(data.train), data.class_names) == (4, ("cat", "dog"))
