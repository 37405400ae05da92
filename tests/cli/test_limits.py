"""Numbers that no command can take are refused in one line, before any work; what does not fit in memory, too."""

import math
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

import pytest
import timm
import torch

import repmlp
from repmlp_cli import main
from repmlp_settings import COMMANDS, Train, check_numbers


def flags_of(number: type) -> list[tuple[str, str]]:
    """(command, flag) of all flags that take a number, or a list of numbers."""
    return [
        (command, name)
        for command, settings in COMMANDS.items()
        for name, hint in get_type_hints(settings).items()
        if any(number in (kind, *get_args(kind)) for kind in (hint, *get_args(hint)))
    ]


def settings_of(command: str, **values: object) -> Any:
    """Settings of a command, with any text for what it requires."""
    settings = COMMANDS[command]
    required = [field.name for field in fields(settings) if field.default is field.default_factory is MISSING]
    return settings(**dict.fromkeys(required, "x"), **values)


def error_of(capsys, *words: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("command", "flag"), flags_of(int))
def test_a_number_far_too_large_is_refused(command, flag):
    for value in (10**30, [10**30]):
        with pytest.raises(ValueError, match=f"^{flag} is {10**30}, but has to be at most "):
            check_numbers(settings_of(command, **{flag: value}))


@pytest.mark.parametrize(("command", "flag"), flags_of(float))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(command, flag, value):
    with pytest.raises(ValueError, match=f"^{flag} is {value}, but has to be a finite number"):
        check_numbers(settings_of(command, **{flag: value}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("verify x --images=100000000000", "images is 100000000000, but has to be at most 2147483647"),
        ("verify x --tolerance=.nan", "tolerance is nan, but has to be a finite number"),
        ("eval x digits --workers=100000000000", "workers is 100000000000, but has to be at most 1024"),
        ("eval x digits --batch-size=0", "batch_size is 0, but has to be 1 or more"),
        ("eval x digits --workers=-1", "workers is -1, but has to be 0 or more"),
        ("quantize x y --data=digits --batch-size=-1", "batch_size is -1, but has to be 1 or more"),
        ("ablate x y --steps=0", "steps is 0, but has to be 1 or more"),
        ("ablate x y --seeds=0,-1", "seeds is -1, but has to be 0 or more"),
        ("ablate x y --seeds=0,1000000000000000000000", "seeds is 1000000000000000000000, but has to be at most "),
    ],
)
def test_commands_check_their_numbers_first(capsys, words, message):
    assert error_of(capsys, *words.split()).startswith(f"error: {message}")


def test_the_flags_with_numbers_are_found():
    assert {("verify", "images"), ("train", "img_size"), ("ablate", "seeds")} < set(flags_of(int))
    assert {("verify", "tolerance"), ("train", "lr")} < set(flags_of(float))


def test_the_smallest_and_the_largest_numbers_are_not_refused():
    check_numbers(Train("x", seed=0, workers=0, epochs=1, batch_size=1, accumulation=1, crop_padding=0, state_every=0))
    check_numbers(Train("x", seed=2**32 - 1, workers=1024, epochs=2**31 - 1, lr=1e300, img_size=[2**31 - 1, 8]))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    args = {"channels": [4], "img_size": 8, "partition_size": 4, "kernel_sizes": [1], "num_classes": 10, "in_chans": 1}
    return str(repmlp.save_model(timm.create_model("repmlp_cifar", **args), tmp_path_factory.mktemp("m") / "t"))


@pytest.mark.parametrize("command", ["verify", "export"])
def test_more_images_than_fit_in_a_batch_are_refused_and_all_there_are_is_enough(
    model, tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    words = ["verify", model] if command == "verify" else ["export", model, "x.pt2", "--format=torch"]
    if command == "verify":
        assert "--images is 20000000: use at most 16777216, since images of 1x8x8 are" in error_of(
            capsys, *words, "--images=20000000"
        )
    assert main([*words, "--data=digits", "--images=2000000000"]) == 0
    assert "360" in capsys.readouterr().out
    monkeypatch.setattr("repmlp_cli.data.MAX_BYTES", 359 * 8 * 8 * 4)
    words = [*words, "--overwrite"] if command == "export" else words
    assert "--images is 360: use at most 359" in error_of(capsys, *words, "--data=digits", "--images=2000000000")


@pytest.mark.parametrize(
    "too_much",
    [lambda: torch.empty(2**62), lambda: torch.empty(2**44), lambda: bytes(2**62)],
    ids=["torch, overflow", "torch, too much", "python"],
)
def test_what_does_not_fit_in_memory_is_one_line(monkeypatch, capsys, too_much):
    monkeypatch.setattr("repmlp_cli.info.open_model", lambda settings: too_much())
    assert error_of(capsys, "info", "x").startswith("error: there is not enough memory: ")


def test_another_error_keeps_its_traceback(monkeypatch):
    def fails(settings):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("repmlp_cli.info.open_model", fails)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["info", "x"])
