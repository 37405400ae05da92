"""The settings of a run as config.yaml keeps them: any text gives settings, or an error that names the file."""

import re
import textwrap
from dataclasses import asdict, replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from repmlp.training import absolute_paths, read_settings, train
from repmlp.training.config import FORMAT, write_settings
from repmlp_settings import Train


def test_paths_are_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").mkdir()
    given = Train(output="r", data="wds/shards", weights="w.pth", data_root="root")
    assert absolute_paths(given) == replace(
        given, data=f"wds/{tmp_path}/shards", weights=f"{tmp_path}/w.pth", data_root=f"{tmp_path}/root"
    )
    assert absolute_paths(Train(output="r", data="torch/cifar10")).data_root == f"{tmp_path}/data"
    assert absolute_paths(Train(output="r", data="hfds/hub")).data == f"hfds/{tmp_path}/hub"
    for data in ("digits", "hfds/user/name"):
        assert absolute_paths(Train(output="r", data=data)) == Train(output="r", data=data)


TEXTS = st.text() | st.binary().map(lambda raw: raw.decode("latin-1"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(
    TEXTS
    | st.dictionaries(st.sampled_from(sorted(asdict(Train(output="r")))) | st.text(max_size=5), VALUES).map(
        yaml.safe_dump
    )
)
def test_any_text_is_settings_or_an_error_that_names_the_file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = read_settings(path)
    except ValueError as error:
        found = str(error)
    assert isinstance(found, Train) or "config.yaml" in found


#: A value of 2^99 numbers in a text of 100 lines.
BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 99))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB.replace("a98:", "lr:"), "a0'"),
        (f"weights:\n{textwrap.indent(BOMB, ' ')}", "weights is a mapping, {'a0': "),
        ("lr: [", "cannot be read as settings of a run"),
        ("- lr", "holds a list, not the settings of a run by name"),
        ("", "holds nothing, not the settings"),
        ("learning_rate: 1", "holds 'learning_rate', which is not a setting of a run"),
        ("epoch: 1", "holds 'epoch', which is not a setting of a run, did you mean epochs?"),
        ("epochs: many", "epochs is a text, 'many', but has to be int"),
        ("epochs: true", "epochs is true or false, True, but has to be int"),
        ("model_args: 3", "model_args is a int, 3, but has to be dict"),
        ("precision: fp64", "precision is a text, 'fp64', but has to be Literal"),
        (
            f"# settings of a run of repmlp train, format {FORMAT + 1}\nlr: 1",
            "its format is 2, and this version reads 1",
        ),
        ("a: " + "[" * 3000, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml.*{re.escape(message)}"):
        train(Train(output=str(tmp_path), resume=True))


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = Train(output="a: [b]", model_args={"channels": [4], "kernel_sizes": None}, img_size=[32, 64], lr=1e-5)
    write_settings(tmp_path / "config.yaml", settings)
    assert read_settings(tmp_path / "config.yaml") == settings
    (tmp_path / "config.yaml").write_text("lr: 1\nweights: null\n")  # written by hand
    assert read_settings(tmp_path / "config.yaml").lr == 1
