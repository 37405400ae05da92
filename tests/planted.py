"""Planted results: run folders with known contents, as an ablation leaves them behind, and a wrong conversion."""

import csv
import json
from dataclasses import asdict, fields

import timm
import torch
import yaml

import repmlp
from repmlp.ablation import Job
from repmlp.training import Epoch
from repmlp_settings import Train

#: A recipe for networks that train in a second.
RECIPE = Train(
    output="",
    model_args={"channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]},
    data="digits",
    img_size=8,
    hflip=0.0,
    crop_padding=1,
    epochs=1,
    batch_size=32,
    lr=0.1,
    cpu=True,
)
MACHINE = {"cpu": "a CPU", "threads": 1, "device": "cpu"}


def plant(job: Job, correct: int, losses: list[float], seconds: list[float], images: int = 200, before: int = -1):
    """Write a finished run: ``correct`` of ``images`` right in deploy form, ``before`` (or as many) not converted."""
    job.folder.mkdir(parents=True)
    settings = {**vars(job.settings)}
    (job.folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with (job.folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [part.name for part in fields(Epoch)])
        writer.writeheader()
        for epoch, (loss, time) in enumerate(zip(losses, seconds, strict=True), 1):
            writer.writerow(asdict(Epoch(epoch, 0.1, loss, 0.5, loss, 0.5, time)))
    model = timm.create_model("repmlp_cifar", in_chans=1, img_size=settings["img_size"], **settings["model_args"])
    size = (1, settings["img_size"], settings["img_size"])
    repmlp.save_model(model, job.folder / "model", data_config={"input_size": size})
    before = correct if before < 0 else before
    (job.folder / "test.json").write_text(json.dumps({"correct": before, "images": images}))
    values = {"images": images, "correct": {"training form": before, "deploy form": correct}, "machine": MACHINE}
    job.converted.write_text(json.dumps(values))


def wrong_reparameterize(model):
    """A conversion of the pure MLP in which one bias of FC3 is off."""
    deploy = repmlp.reparameterize(model)
    with torch.no_grad():
        deploy.stages[0][2].partition_perceptron.fc3.bias += 0.1
    return deploy
