"""metrics.csv and test.json: what a run wrote is read back, and anything else is an error that names the file."""

import json
import math
from dataclasses import asdict

import pytest

from repmlp.training import Epoch
from repmlp.training.records import append_row, read_rows, read_test

HEADER = "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds\n"


def test_rows_are_read_as_written(tmp_path):
    file = tmp_path / "metrics.csv"
    assert read_rows(file) == []
    rows = [Epoch(i, 0.1, 2.0 / i, 0.2, 1.5, 0.3, 7.25) for i in (1, 2)]
    for row in rows:
        append_row(file, row)
    assert read_rows(file) == [asdict(row) for row in rows]
    file.write_text(f"{HEADER}1,0.1,2.0,0.2,nan,nan,3\n")  # nothing was held out
    assert math.isnan(read_rows(file)[0]["val_loss"])
    file.write_text(HEADER)
    assert read_rows(file) == []


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"epoch\n1\n",
        b"a,b\n1",
        HEADER.encode() + b"1,x,y,z,,,\n",
        HEADER.encode() + b"1,0",
        b"x" * 200_000,
    ],
)
def test_rows_of_something_else(tmp_path, content):
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is not the metrics of a run"):
        read_rows(file)


def test_a_result_is_read_as_written(tmp_path):
    file = tmp_path / "test.json"
    values = {"epoch": 2, "correct": 40, "images": 360, "loss": math.nan, "accuracy": 0.1}
    file.write_text(json.dumps(values))
    assert read_test(file, "correct", "loss", "accuracy").keys() == values.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not the result of a run"),
        (b"\xff", "is not the result of a run"),
        (b"[" * 200_000, "is not the result of a run"),
        (b"[]", r"is not the result of a run but \[\]"),
        (b"null", "is not the result of a run but None"),
        (b"{}", "correct is None, but must be a number"),
        (b'{"correct": "[/red]", "images": 1}', r"correct is '\[/red\]', but must be a number"),
        (b'{"correct": 1, "images": true}', "images is True, but must be a number"),
    ],
)
def test_a_result_that_is_something_else(tmp_path, content, message):
    file = tmp_path / "test.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"test\.json(:)? {message}"):
        read_test(file, "correct", "images")
