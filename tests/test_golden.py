"""One block against the authors' code: what it computed is kept in tests/golden, weights are rebuilt by a formula."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import repmlp
from compare import assert_same
from weights import golden_state_dict, uniform

FILES = sorted((Path(__file__).parent / "golden").glob("block_*.safetensors"))


class Golden:
    """One golden file, and our block of the same configuration."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.config = json.loads(metadata["config"])
        self.train_state = golden_state_dict(json.loads(metadata["train_keys"]))
        self.deploy_state = {
            name.removeprefix("deploy/"): tensor for name, tensor in tensors.items() if name.startswith("deploy/")
        }
        self.x, self.y = tensors["x"], tensors["y"]

    def block(self, deploy: bool = False) -> repmlp.RepMLP:
        c = self.config
        block = repmlp.RepMLP(
            c["in_channels"],
            c["out_channels"],
            (c["H"], c["W"]),
            (c["h"], c["w"]),
            c["kernel_sizes"] or (),
            c["groups"],
            c["fc1_fc2_reduction"],
            deploy=deploy,
            dtype=torch.float64,
        )
        return block.eval()

    def trained(self) -> repmlp.RepMLP:
        block = self.block()
        repmlp.official.load(block, self.train_state)
        return block


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


@pytest.fixture
def rect():
    return Golden(next(path for path in FILES if path.stem == "block_rect"))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


def test_there_are_golden_blocks():
    assert {path.stem for path in FILES} >= {"block_basic", "block_no_global", "block_paper_cifar", "block_rect"}


def test_the_input_is_the_formulas(golden):
    assert_same(golden.x, torch.from_numpy(uniform("input", golden.x.numel())).reshape(golden.x.shape))


def test_the_training_form_computes_what_the_authors_does(golden):
    assert relative_error(golden.trained()(golden.x), golden.y) < 1e-9


def test_the_conversion_gives_the_authors_weights(golden):
    block = repmlp.reparameterize(golden.trained())
    ours = repmlp.official.state_dict(block)
    assert set(ours) == set(golden.deploy_state)
    for name, tensor in golden.deploy_state.items():
        assert relative_error(ours[name], tensor) < 1e-9, name


def test_the_deploy_form_computes_what_the_authors_does(golden):
    assert relative_error(repmlp.reparameterize(golden.trained())(golden.x), golden.y) < 1e-9


def test_the_authors_converted_weights_load_into_a_block_in_deploy_form(golden):
    block = golden.block(deploy=True)
    repmlp.official.load(block, golden.deploy_state)
    assert relative_error(block(golden.x), golden.y) < 1e-9


@pytest.mark.parametrize("deploy", [False, True])
def test_weights_under_the_authors_names_go_both_ways(golden, deploy):
    state = golden.deploy_state if deploy else golden.train_state
    block = golden.block(deploy)
    repmlp.official.load(block, state)
    back = repmlp.official.state_dict(block)
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert_same(back[name], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc3.weight"), r"do not fit the model: 1 missing \(fc3\.weight\)$"),
        (lambda s: s.update({"fc4.weight": torch.ones(1)}), r"1 unexpected \(fc4\.weight\)$"),
        (
            lambda s: s.update({"avg.bn.bias": torch.ones(7)}),
            r"1 of another shape \(avg\.bn\.bias: \[7\] instead of \[",
        ),
        (lambda s: s.update({"fc3.weight": s["fc3.weight"].flatten(1)}), r"1 of another shape \(fc3\.weight"),
        (
            lambda s: (s.pop("fc3.weight"), s.update(a=s["fc3_bn.bias"])),
            r"1 missing \(fc3\.weight\); 1 unexpected \(a\)$",
        ),
        (lambda s: [s.pop(name) for name in list(s)[:7]], r"7 missing \((\S+, ){4}\S+ and 2 more\)$"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_none_is_loaded(rect, change, message):
    block = rect.block()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    state = dict(rect.train_state)
    change(state)
    with pytest.raises(ValueError, match=message):
        repmlp.official.load(block, state)
    for name, tensor in block.state_dict().items():
        assert_same(tensor, before[name])


def test_weights_of_the_other_form_do_not_fit(rect):
    with pytest.raises(ValueError, match=r"missing .*fc3\.bias.*unexpected"):
        repmlp.official.load(rect.block(deploy=True), rect.train_state)
    with pytest.raises(ValueError, match=r"missing .*unexpected \(fc3\.bias\)"):
        repmlp.official.load(rect.block(), rect.deploy_state)


def test_a_kernel_that_is_not_square_has_no_name():
    with pytest.raises(ValueError, match="no name for a 1x3 kernel: square kernels only"):
        repmlp.official.state_dict(repmlp.RepMLP(2, 2, (3, 3), (3, 3), ((1, 3),)))


def test_a_model_that_the_authors_do_not_have_is_an_error():
    with pytest.raises(ValueError, match="the authors' code has no Linear"):
        repmlp.official.load(torch.nn.Linear(1, 1), {})
