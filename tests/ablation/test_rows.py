"""Each row is the recipe with one change of the network, and nothing else."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import torch

from planted import RECIPE
from repmlp import complexity
from repmlp.ablation import ROWS, check_recipe, choose_rows
from repmlp_settings import Ablate, Train

PAPER = Train(output="", data="torch/cifar10")


def network(row, recipe=PAPER, **kwargs):
    with torch.device("meta"):
        return timm.create_model(recipe.model, **row.settings(recipe, Path("x"), 0).model_args, **kwargs)


@pytest.mark.parametrize(
    ("name", "macs"),
    # PAPER: 52.8M and, for the Wide ConvNet, 65.1M are printed in Table 1; the others follow from the structure
    [("pure-mlp", 52.8), ("no-global", 52.5), ("conv9-for-fc3", 66.2), ("conv9", 129.5), ("wide-convnet", 65.1)],
)
def test_the_rows_are_the_networks_of_the_paper(name, macs):
    (row,) = choose_rows([name])
    assert round(complexity(network(row, deploy=True), (3, 32, 32)).macs / 1e6, 1) == macs


def test_without_local_perceptron_the_deploy_form_is_that_of_the_pure_mlp_and_the_training_form_has_no_conv_but_1x1():
    pure, no_local = choose_rows(["pure-mlp", "no-local"])
    forms = [complexity(network(row, deploy=True), (3, 32, 32)) for row in (pure, no_local)]
    assert forms[0] == forms[1]
    convs = [module for module in network(no_local).modules() if isinstance(module, torch.nn.Conv2d)]
    assert {conv.kernel_size for conv in convs} == {(1, 1)}


def test_the_wide_convnet_is_twice_as_wide_as_the_recipe_says():
    (wide,) = choose_rows(["wide-convnet"])
    assert wide.settings(PAPER, Path("x"), 0).model_args["channels"] == [32, 64, 128]
    assert wide.settings(RECIPE, Path("x"), 0).model_args["channels"] == [8, 16]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_changes_nothing_but_network_seed_and_folder(row):
    recipe = replace(RECIPE, overwrite=True, resume=True, lr=0.3)
    settings = asdict(row.settings(recipe, Path("here"), 7))
    differ = {name for name, value in asdict(recipe).items() if settings[name] != value}
    assert differ - {"model_args"} == {"output", "seed", "overwrite", "resume"}
    assert (settings["output"], settings["seed"]) == ("here", 7)
    changed = {name for name in settings["model_args"] if settings["model_args"][name] != RECIPE.model_args.get(name)}
    assert changed == {*row.changes, *(["channels"] if row.width != 1 else [])}
    assert recipe.model_args == RECIPE.model_args  # not written to


def test_rows_are_chosen_by_name_in_the_order_of_the_table():
    assert choose_rows([]) == ROWS
    assert [row.name for row in choose_rows(["conv9", "pure-mlp"])] == ["pure-mlp", "conv9"]
    with pytest.raises(ValueError, match=r"unknown row no-locals: the rows are pure-mlp, no-local, .*wide-convnet"):
        choose_rows(["pure-mlp", "no-locals"])


def test_the_help_names_every_row():
    assert all(row.name in Ablate.__doc__ for row in ROWS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "repmlp_resnet50"}, "variants of repmlp_cifar, this recipe is for repmlp_resnet50"),
        ({"model_args": {"block": "conv9"}}, "model_args.block is set by the rows of the ablation"),
        ({"model_args": {"global_perceptron": False}}, "model_args.global_perceptron is set by the rows"),
        ({"model_args": {"kernel_sizes": []}}, "row B, no Local Perceptron, would equal the pure MLP"),
        ({"weights": "x"}, "not every row of the ablation supports weights"),
        ({"qat": True}, "not every row of the ablation supports qat"),
    ],
)
def test_a_recipe_that_no_ablation_can_be_made_of(wrong, message):
    check_recipe(RECIPE)
    check_recipe(replace(RECIPE, model_args={"kernel_sizes": None}))  # timm leaves out what is None
    with pytest.raises(ValueError, match=message):
        check_recipe(replace(RECIPE, **wrong))
