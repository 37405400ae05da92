"""How much accuracy int8 costs, and whether quantization-aware training recovers it: the digits, three seeds.

python benchmarks/qat.py
"""

import tempfile
from pathlib import Path
from typing import Any

from common import options, table, write

import repmlp
from repmlp.data import load_data
from repmlp.deploy import calibration_images, quantize
from repmlp.deploy.engines import QUANTIZERS
from repmlp.training import build_test_loader, train
from repmlp_settings import Train

WAYS = (("onnxruntime", "static"), ("onnxruntime", "dynamic"), ("torch", "dynamic"))


def run(seed: int, qat: bool, epochs: int, scratch: Path) -> dict[str, Any]:
    """Train with recipes/digits.yaml at half the width; count correct test predictions in float32 and in int8."""
    folder = scratch / f"{seed}-{qat}"
    settings = Train(
        output=str(folder),
        model_args={"channels": [8, 16]},
        img_size=16,
        crop_padding=1,
        hflip=0.0,
        val_fraction=0.0,
        epochs=epochs,
        batch_size=64,
        lr=0.1,
        seed=seed,
        qat=qat,
        cpu=True,
    )
    train(settings)
    model, data = repmlp.reparameterize(repmlp.load_model(folder)), load_data("digits")
    test = build_test_loader(model, data, 128)
    result: dict[str, Any] = {"seed": seed, "qat": qat}
    for engine, method in WAYS:
        file = folder / f"{engine}-{method}{QUANTIZERS[engine].suffix}"
        calibration = calibration_images(model, data, 256) if method == "static" else None
        done = quantize(model, file, test, calibration, engine=engine, method=method, max_drop=100)
        result["float32"], result[f"{engine} {method}"] = done.num_correct_float32, done.num_correct
    return result


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = [run(seed, qat, args.epochs, Path(scratch)) for qat in (False, True) for seed in range(args.seeds)]
    columns = ["float32", *(f"{engine} {method}" for engine, method in WAYS)]
    rows = [
        [name, *(" / ".join(str(r[column]) for r in results if r["qat"] == qat) for column in columns)]
        for name, qat in (("trained as usual", False), ("with `--qat`", True))
    ]
    text = table([f"right of 360, seeds 0 to {args.seeds - 1}", *columns], rows)
    write("qat", {"channels": "8, 16", "epochs": args.epochs}, results, text)


if __name__ == "__main__":
    main()
