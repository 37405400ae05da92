"""Model cards: valid headers, code that runs, nothing hostile, and a user's own README.md left alone."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import repmlp
from repmlp.cards import LEFT_OUT, Origin, Subject, escape, file_card, find_origin, model_card, write_card
from repmlp.files import is_sealed
from repmlp.training.config import write_settings
from repmlp_settings import Train

HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://example.com/x.png)",
    "a\n# b",
    "a\n\n---\n\nb",
    "```\ncode",
    "`x`",
    "| a | b |",
    "*a* _b_ ~~c~~",
    "&lt;b&gt;",
    "a\\",
    "\x1b[31mred",
    "a\u202eb\u2028c",
    "<!-- repmlp",
    "cat",
]


@pytest.fixture(scope="module")
def model():
    arguments = {"channels": (4,), "partition_size": 4, "kernel_sizes": (1, 3), "img_size": 8}
    return timm.create_model("repmlp_cifar", num_classes=len(HOSTILE), **arguments).eval()


@pytest.fixture(scope="module")
def subject(model):
    deploy = repmlp.reparameterize(model)
    forms = {"training form": model, "deploy form": deploy}
    test = {"accuracy": 0.625, "images": 40}
    settings = Train(
        output="/home/me/x", data="folder:/home/me/cats", data_root="/home/me", weights="/home/me/w.pth", lr=1
    )
    return Subject(deploy, forms, repmlp.verify(model, deploy), Origin(settings, test, {"license": "mit"}))


def header(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def code(card: str) -> str:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]


def test_the_header_holds_what_is_known_and_no_path(subject):
    card = model_card(subject)
    about = header(card)
    assert about["library_name"] == "timm"
    assert about["tags"] == ["image-classification", "timm", "repmlp"]
    assert about["license"] == "mit"
    assert "datasets" not in about  # a folder of one's own
    (result,) = about["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.625}]
    assert result["dataset"]["name"] == "cats"
    assert "/home" not in card
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert settings == {"model": "repmlp_cifar", "data": "cats", "weights": "w.pth", "lr": 1}
    assert not set(LEFT_OUT) & set(settings)


@pytest.mark.parametrize(
    ("data", "datasets"),
    [
        ("torch/cifar10", ["cifar10"]),
        ("hfds/timm/imagenette", ["timm/imagenette"]),
        ("hfds//data/mine", None),
        ("wds//data/mine", None),
        ("digits", None),
    ],
)
def test_data_sets_that_others_have_are_in_the_header(model, data, datasets):
    about = header(model_card(Subject(model, {"as trained": model}, origin=Origin(Train(output="x", data=data)))))
    assert about.get("datasets") == datasets
    assert "license" not in about
    assert "metrics" not in about


def test_both_forms_and_the_proof_are_shown(subject):
    card = model_card(subject)
    params = [f"{repmlp.complexity(form).params:,}" for form in subject.forms.values()]
    assert f"| parameters | {params[0]} | {params[1]} |" in card
    assert "\nTop-1 on the test images, at the end of training, in training form: 62.50% of 40.\n" in card
    assert "|  |" not in card.replace("|  | training form", "")  # no empty cell
    assert subject.report.verdict() in card
    assert all(f"| {block.name} |" in card for block in (*subject.report.blocks, subject.report.network))


def test_hostile_names_are_plain_text(subject, model):
    markdown_it = pytest.importorskip("markdown_it")
    named = timm.create_model(
        "repmlp_cifar", num_classes=len(HOSTILE), pretrained_cfg_overlay={"label_names": HOSTILE}, channels=(4,)
    )
    data = "folder:/x/" + HOSTILE[0].replace("/", "")
    card = model_card(Subject(named, {"as trained": named}, origin=Origin(Train(output="x", data=data))))
    page = markdown_it.MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert set(re.findall(r"<(\w+)", page)) <= {
        "h1",
        "h2",
        "p",
        "code",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    shown = html.unescape(re.sub("<[^>]*>", "", page))
    for name in HOSTILE:
        assert "".join(c if c.isprintable() else " " for c in name) in shown
    assert len(re.findall("^# ", card, re.MULTILINE)) == 1
    markup = markdown_it.MarkdownIt("commonmark").render(", ".join(HOSTILE))
    assert "<script>" in markup  # unescaped, it would be


def test_long_and_many_names_are_cut(model):
    assert len(escape("x" * 1000)) < 70
    many = timm.create_model(
        "test_vit", num_classes=1000, pretrained_cfg_overlay={"label_names": list(map(str, range(1000)))}
    )
    assert "19, and 980 more" in model_card(Subject(many, {"as trained": many}))


def test_five_lines_load_the_folder_and_so_does_timm(subject, tmp_path, monkeypatch, capsys):
    folder = repmlp.save_model(subject.model, tmp_path / "m")
    assert write_card(folder, model_card(subject))
    monkeypatch.chdir(folder)
    Image.new("RGB", (9, 12)).save("image.png")
    lines = code(Path("README.md").read_text())
    assert len(lines.splitlines()) == 5
    exec(lines, {})
    assert capsys.readouterr().out.startswith("tensor([[")
    x = torch.randn(2, 3, 8, 8)
    same = timm.create_model("local-dir:.", pretrained=True).eval()
    assert torch.equal(same(x), repmlp.load_model(".")(x))
    # the Hub, without a network: its files come from this folder
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    same = timm.create_model("hf-hub:someone/something", pretrained=True).eval()
    assert torch.equal(same(x), repmlp.load_model(".")(x))


def test_the_code_about_the_hub_runs(subject, tmp_path, monkeypatch):
    """Against a folder that stands for the Hub."""
    hub, page = tmp_path / "hub", Path(__file__).parents[1] / "docs" / "files.md"
    monkeypatch.chdir(tmp_path)
    repmlp.save_model(subject.model, "runs/x/deploy")
    write_card("runs/x/deploy", model_card(subject))
    upload = lambda folder_path, repo_id: shutil.copytree(folder_path, hub / repo_id)  # noqa: E731
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo_id: hub / repo_id)
    download = lambda repo_id, filename, **_: str(hub / repo_id / filename)  # noqa: E731
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    exec(code(page.read_text()), names := {})
    assert repmlp.is_reparameterized(names["model"])
    assert sorted(path.name for path in (hub / "USER/NAME").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_form_that_timm_cannot_build_is_not_said_to_load_there(model):
    assert "local-dir:" in model_card(Subject(model, {"training form": model}))
    resnet = timm.create_model("test_resnet").eval()
    assert "local-dir:" in model_card(Subject(resnet, {"as trained": resnet}))
    folded = repmlp.fold_norms(resnet)
    assert "local-dir:" not in model_card(Subject(folded, {"deploy form": folded}))


def test_a_readme_of_the_user_is_kept_and_our_own_is_replaced(tmp_path):
    for mine in ("mine", "", "---\nlicense: mit\n---\n"):
        (tmp_path / "README.md").write_text(mine)
        assert not write_card(tmp_path, "new\n")
        assert (tmp_path / "README.md").read_text() == mine
    (tmp_path / "README.md").unlink()
    assert write_card(tmp_path, "first\n")
    assert write_card(tmp_path, "second\n")
    edited = (tmp_path / "README.md").read_text().replace("second", "mine")
    assert "mine" in edited
    (tmp_path / "README.md").write_text(edited)
    assert not write_card(tmp_path, "third\n")


def test_the_card_of_exported_files_has_a_section_for_each_that_is_there(subject):
    card = file_card(subject, Path("x/a.onnx"), "facts of a")
    card = file_card(subject, Path("x/b.pt2"), "facts of b", card, ["a.onnx", "b.pt2"])
    card = file_card(subject, Path("x/b.pt2"), "new facts of b", card, ["a.onnx", "b.pt2"])
    assert re.findall(r"^facts.*|^new facts.*", card, re.MULTILINE) == ["facts of a", "new facts of b"]
    assert card.count("## Figures") == 1
    assert "load_exported('b.pt2')" in card
    assert "facts of a" not in file_card(subject, Path("x/b.pt2"), "facts of b", card, ["b.pt2"])  # it was deleted
    both = file_card(subject, Path("x/c.onnx"), "facts of c", model_card(subject), [])
    assert "repmlp.load_model" in both  # exported into a model folder


def test_the_origin_is_found_from_each_folder_of_a_run(tmp_path):
    run = tmp_path / "run"
    for name in ("model", "deploy"):
        (run / name).mkdir(parents=True)
        (run / name / "README.md").write_text("---\nlicense: mit\n---\nmine")
    write_settings(run / "config.yaml", Train(output=str(run), lr=0.5))
    (run / "test.json").write_text(json.dumps({"accuracy": 0.5, "images": 8, "loss": 1.0}))
    for folder in (run, run / "model", run / "deploy"):
        origin = find_origin(folder)
        assert origin.settings.lr == 0.5
        assert origin.test == {"accuracy": 0.5, "images": 8}
        assert origin.header == {"license": "mit"}
    shutil.copytree(run / "model", tmp_path / "elsewhere")
    assert find_origin(tmp_path / "elsewhere") == Origin(header={"license": "mit"})
    for broken in ("", "no header", "---\n[1, 2]\n---\n", "---\n: : :\n---\n", "---\n" + "[" * 2000):
        (tmp_path / "elsewhere" / "README.md").write_text(broken)
        assert find_origin(tmp_path / "elsewhere") == Origin()
    (run / "test.json").write_text('{"accuracy": "high"}')
    assert find_origin(run).test == {}
    assert not is_sealed(run / "model" / "README.md")
