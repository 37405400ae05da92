"""Several processes train one network: the same as one process, as far as rounding lets it."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from repmlp.data import ProcessShard, epoch_batches
from repmlp_settings import Train

SETTINGS = {
    "model_args": {"channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]},
    "img_size": 8,
    "val_fraction": 0.09,  # of 1437: 129 images, which two processes cannot share evenly
    "epochs": 1,
    "batch_size": 128,
    "lr": 0.02,
    "ema": 0.5,
    "cpu": True,
}


#: What two processes do, and one: evaluate, and train while only the first may write.
SCRIPT = """
import copy, json, os, signal, sys
import timm, torch
from accelerate import Accelerator
import repmlp.data.memory as memory
import repmlp.training.loop as loop
from repmlp.data import ImageBatches, ProcessShard, eval_transform, load_data
from repmlp.layers import convert_sync_batchnorm
from repmlp.training import Stopped, evaluate
from repmlp.data import ProcessShard, epoch_batches
from repmlp_settings import Train

def forbidden(*args, **kwargs):
    raise AssertionError("a process that is not the first one writes")

if os.environ.get("RANK", "0") != "0":
    writers = ("write_model_folder", "write_state", "append_row", "keep_rows", "atomic_folder", "atomic_write")
    for writer in (*writers, "write_settings", "remove_state"):
        assert hasattr(loop, writer)
        setattr(loop, writer, forbidden)

accelerator = Accelerator(cpu=True)
shard = ProcessShard(accelerator.process_index, accelerator.num_processes)
torch.manual_seed(0)
model = timm.create_model("repmlp_cifar", img_size=8, in_chans=1, channels=(4,), partition_size=4, kernel_sizes=(3,))
config = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.4,), "interpolation": "bilinear", "crop_pct": 1.0}
results = []
for images in (117, 1):
    batches = ImageBatches(load_data("digits").test, range(images), eval_transform(config), 16, shard)
    result = evaluate(model, batches.iter_epoch(), accelerator)
    results.append([result.correct, result.images, result.loss])
if accelerator.is_main_process:
    print(json.dumps(results))
norm = torch.nn.BatchNorm1d(3, affine=False)
synchronized = convert_sync_batchnorm(copy.deepcopy(norm), 2, torch.device("cpu"))
x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
if shard.world == 2:
    torch.testing.assert_close(synchronized(x[shard.slice()]), norm(x)[shard.slice()])
    torch.testing.assert_close(synchronized.running_var, norm.running_var)
torch.set_default_dtype(torch.float64)  # rounding of float32 grows with every step: it would hide what differs
normalize = memory.normalize
memory.normalize = lambda *args: normalize(*args).double()
def stop(step):
    if step.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)

for settings in json.loads(sys.argv[1]):
    stops = settings["output"].endswith("stopped") and not settings["resume"]
    try:
        loop.train(Train(**settings), stop if stops else lambda step: None)
    except Stopped:
        assert stops
accelerator.end_training()  # gloo's threads must not outlive the interpreter
"""


def run(command, runs):
    arguments = [*command, json.dumps([asdict(settings) for settings in runs])]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[0])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run folders of one process, of two, and of two with their own batch statistics; evaluations of one and two."""
    tmp_path = tmp_path_factory.mktemp("processes")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    single, two = (
        Train(output=str(tmp_path / "1"), **SETTINGS),
        Train(output=str(tmp_path / "2"), sync_bn=True, **SETTINGS),
    )
    apart = Train(output=str(tmp_path / "apart"), **SETTINGS)
    stopped = Train(output=str(tmp_path / "stopped"), **{**SETTINGS, "batch_size": 64})
    whole = replace(stopped, output=str(tmp_path / "whole"))
    resumed = Train(output=stopped.output, resume=True)
    evaluations = run([str(script)], [single]), run([*torchrun, str(script)], [two, apart, whole, stopped, resumed])
    return (*(Path(settings.output) for settings in (single, two, apart)), evaluations)


def difference(a, b):
    """The largest relative difference of any weight or running statistic."""
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    floats = [key for key in first if first[key].is_floating_point()]
    return max(((first[key] - second[key]).norm() / first[key].norm()).item() for key in floats)


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one_when_norms_are_synchronized(results):
    single, two, *_ = results
    assert difference(single, two) < 1e-9


@pytest.mark.slow
def test_and_other_weights_when_each_has_its_own_batch_statistics(results):
    single, _, apart, _ = results
    assert difference(single, apart) > 1e-2


@pytest.mark.slow
def test_metrics_are_those_of_one_process(results):
    single, two, *_ = results
    rows = []
    for folder in (single, two):
        with (folder / "metrics.csv").open() as file:
            rows += list(csv.DictReader(file))
    assert len(rows) == 2  # one row a run: the second process wrote none
    for key in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert float(rows[1][key]) == pytest.approx(float(rows[0][key]), rel=1e-6)
    tests = [json.loads((folder / "test.json").read_text()) for folder in (single, two)]
    assert tests[0]["images"] == tests[1]["images"] == 360
    assert tests[1]["correct"] == tests[0]["correct"]


@pytest.mark.slow
def test_two_processes_that_one_signal_stops_resume_to_the_same_metrics(results):
    """Both stop, and each goes on with its own sums of the epoch."""
    metrics, weights = [], []
    for name in ("whole", "stopped"):
        folder = results[0].parent / name
        (row,) = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        metrics.append({key: value for key, value in row.items() if key != "seconds"})
        weights.append(load_file(folder / "model" / "model.safetensors"))
    assert metrics[0] == metrics[1]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_an_evaluation_over_uneven_parts_counts_every_image_once(results):
    alone, together = results[3]
    assert [images for _, images, _ in together] == [117, 1]  # of one image the second process has none
    for (correct, images, loss), expected in zip(together, alone, strict=True):
        assert [correct, images] == expected[:2]
        assert loss == pytest.approx(expected[2], rel=1e-6)


def test_parts_of_a_batch_are_the_batch():
    whole = torch.stack(list(epoch_batches(50, 12, True, seed=3, epoch=2)))
    shards = [ProcessShard(rank, 3) for rank in range(3)]
    parts = [epoch_batches(50, 12, True, 3, 2, shard) for shard in shards]
    assert torch.equal(torch.cat([torch.stack(list(part)) for part in parts], 1).sort(1)[0], whole.sort(1)[0])
    held_out = torch.cat([torch.cat(list(epoch_batches(50, 12, False, shard=shard))) for shard in shards])
    assert torch.equal(held_out.sort()[0], torch.arange(50))
