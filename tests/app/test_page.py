"""The explorer in a real browser. Without gradio, Playwright or Chromium these tests are skipped."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import timm

from pictures import encoded, picture
from repmlp import save_model
from repmlp.training.records import Epoch, append_row

pytestmark = pytest.mark.slow
FROZEN = Path(__file__).parents[1] / "frozen" / "stopped"
HOSTILE = "<img src=x onerror=alert(1)> **{}**"
LIMIT = 30_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with labels that would be a picture if a browser took them for HTML, and bold if for Markdown."""
    folder = tmp_path_factory.mktemp("explore") / "<b>run"
    shutil.copytree(FROZEN, folder)
    config = json.loads((folder / "model" / "config.json").read_text())
    config["label_names"] = [HOSTILE.format(i) for i in range(10)]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def served(model):
    """The address of the page for a model, by the command in a process of its own."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra app is not installed: no gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-um", "repmlp_cli", "explore", model, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            for line in server.stdout:
                lines.append(line)
                if line.startswith("open "):
                    break
            assert lines, "the command ended without a page"
            assert lines[-1].startswith(f"open http://127.0.0.1:{port}"), lines
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(run):
    with served(run) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed: no playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as another visitor; at the end, every request was for this server and no script has run."""
    contexts, requests, dialogs, hosts = [], [], [], set()

    def open_page(address=address):
        hosts.add(urlsplit(address).netloc)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(LIMIT)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        page.get_by_role("tab", name="Predict").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    asked = {urlsplit(url).netloc for url in requests if not url.startswith(("data:", "blob:"))}
    assert asked == hosts
    assert dialogs == []


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def text_of(page, label, wanted):
    """The text of a box, once it contains a pattern."""
    box = page.get_by_label(label, exact=True)
    page.wait_for_function(
        "([box, pattern]) => new RegExp(pattern).test(box.value)", arg=[box.element_handle(), wanted]
    )
    return box.input_value()


def test_a_drawn_digit_and_both_forms_agree(visit):
    page = visit()
    tab(page, "Draw")
    canvas = page.locator("canvas").first
    canvas.wait_for()
    box = canvas.bounding_box()
    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.3
    page.get_by_role("button", name="Predict the drawing").click()
    text_of(page, "Result", "the drawing is empty")
    page.get_by_role("button", name="Brush").click()
    page.mouse.move(across, down)
    page.mouse.down()
    page.mouse.move(across, down + box["height"] * 0.4, steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Predict the drawing").click()
    text_of(page, "Result", "Both forms predict the same class")


def test_labels_and_names_are_shown_as_text(visit, run):
    page = visit()
    page.get_by_role("heading", name=str(run)).wait_for()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "<i>x</i>.png", "mimeType": "image/png", "buffer": encoded(picture())}
    )
    text_of(page, "Result", "Both forms predict the same class")
    shown = re.compile(re.escape(HOSTILE.partition("{")[0]))
    page.get_by_text(shown).filter(visible=True).first.wait_for()
    assert page.locator("img[src=x], strong, h1 b").count() == 0


def test_a_file_that_is_not_an_image_is_an_error(visit):
    page = visit()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    assert "not an image" in text_of(page, "Result", "Error")


def test_an_image_of_the_data_set(visit):
    page = visit()
    tab(page, "Data set")
    page.get_by_label("number input for Test image").fill("3")
    assert "Its label is 7" in text_of(page, "Result", "Its label")


def test_a_click_on_a_pixel_changes_the_picture(visit):
    page = visit()
    tab(page, "Inside FC3")
    assert "pixel (2, 2)" in text_of(page, "Scale", "pixel")
    first = page.locator("img[src*='/file=']:visible").first
    before = first.get_attribute("src")
    box = first.bounding_box()
    side = min(box["width"], box["height"])
    left = box["x"] + (box["width"] - side) / 2
    page.mouse.click(left + side * 0.1, box["y"] + box["height"] / 2 + side * 0.4)  # the lower left corner
    assert "pixel (3, 0)" in text_of(page, "Scale", r"pixel \(3")
    page.wait_for_function("([image, before]) => image.src != before", arg=[first.element_handle(), before])
    page.get_by_label("number input for Output pixel, row").fill("1")
    text_of(page, "Scale", r"pixel \(1, 0\)")


def test_a_broken_weight_is_found_and_other_visitors_keep_theirs(visit):
    mine, other = visit(), visit()
    for page in (mine, other):
        tab(page, "Proof")
    mine.get_by_role("button", name="Break a weight").click()
    changed = text_of(mine, "Deploy form", "Changed")
    name = re.search(r"Changed (\S+)\[", changed)[1]
    assert f"in tensor {name}" in text_of(mine, "Verdict", "NOT EQUAL")
    other.get_by_role("button", name="Verify").click()
    assert text_of(other, "Verdict", "equal").startswith("equal")
    mine.get_by_role("button", name="Mend all").click()
    assert text_of(mine, "Verdict", "^equal").startswith("equal")


def press_until(page, key, wanted, most=60):
    """Press a key until the control with a name has the focus."""
    for _ in range(most):
        page.keyboard.press(key)
        focused = page.evaluate("(e => e.getAttribute('aria-label') || e.textContent.trim())(document.activeElement)")
        if focused == wanted:
            return
    raise AssertionError(f"{wanted} is not reached with {key}")


def press_to_the_end(page, key, label, wanted, most=10):
    """Press a slider's key until a box has a text: while a tab opens, gradio sets its sliders back once more."""
    scale = page.get_by_label(label, exact=True)
    for _ in range(most):
        page.keyboard.press(key)
        page.wait_for_timeout(LIMIT / most)
        if re.search(wanted, scale.input_value()):
            return
    raise AssertionError(f"{key} does not lead to {wanted}: {scale.input_value()}")


def test_the_page_can_be_used_with_the_keyboard_alone(visit):
    page = visit()
    press_until(page, "Tab", "Inside FC3")
    page.keyboard.press("Enter")
    text_of(page, "Scale", r"pixel \(2, 2\)")
    press_until(page, "Tab", "range slider for Output pixel, row")
    press_to_the_end(page, "ArrowRight", "Scale", r"pixel \(3, 2\)")
    press_until(page, "Shift+Tab", "Proof")
    page.keyboard.press("Enter")
    press_until(page, "Tab", "Break a weight")
    page.keyboard.press("Enter")
    text_of(page, "Verdict", "NOT EQUAL")
    press_until(page, "Tab", "Mend all")
    page.keyboard.press("Space")
    text_of(page, "Verdict", "^equal")


#: The contrast (WCAG 2.1, 1.4.3) of every visible text that is less than 4.5, with the text.
PALE = """() => {
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    const channel = v => v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const background = e => {
        for (; e; e = e.parentElement) {
            const color = numbers(getComputedStyle(e).backgroundColor);
            if (color.length == 3) return color;
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), pale = {};
    let texts = 0;
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim(), e = walker.currentNode.parentElement;
        const style = getComputedStyle(e);
        if (!text || !e.offsetParent || style.visibility == "hidden" || style.opacity == 0) continue;
        const pair = [luminance(numbers(style.color)), luminance(background(e))].sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        texts += 1;
        if (contrast < 4.5) pale[text] = contrast;
    }
    return [texts, pale];
}"""


def test_every_text_has_a_readable_contrast(visit):
    page = visit()
    for name in ("Predict", "Inside FC3", "Proof", "Training"):
        tab(page, name)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # colors change gradually
        texts, pale = page.evaluate(PALE)
        assert texts > 5
        assert pale == {}, name
    page.evaluate("document.querySelector('h1').style.color = '#999'")
    assert len(page.evaluate(PALE)[1]) == 1


def test_a_network_of_timm(visit, tmp_path):
    network = timm.create_model("levit_128s", img_size=64, depth=(1, 1, 1), num_classes=5)
    with served(save_model(network, tmp_path / "levit")) as address:
        page = visit(address)
        assert (
            page.get_by_role("tab", name="Inside FC3").count() == page.get_by_role("tab", name="Training").count() == 0
        )
        page.locator("input[type=file]").first.set_input_files(
            {"name": "x.png", "mimeType": "image/png", "buffer": encoded(picture())}
        )
        text_of(page, "Result", "Both forms predict the same class")
        tab(page, "Proof")
        page.get_by_role("button", name="Break a weight").click()
        text_of(page, "Verdict", "NOT EQUAL")
        page.get_by_role("button", name="Mend all").click()
        text_of(page, "Verdict", "^equal")


def test_the_curves_follow_a_run(visit, run):
    page = visit()
    tab(page, "Training")
    page.set_viewport_size({"width": 400, "height": 900})
    text_of(page, "Run", "not finished. Epochs so far: 1")
    append_row(run / "metrics.csv", Epoch(2, 0.1, 2.0, 0.3, 2.1, 0.2, 1.0))
    text_of(page, "Run", "Epochs so far: 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_request_for_another_host_is_blocked(browser, address):
    page = browser.new_page()
    page.goto(address)
    blocked = page.evaluate(
        """new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));
            setTimeout(() => done('nothing blocked'), 10000);
            const image = new Image(); image.src = 'http://192.0.2.1/x.png'
        })"""
    )
    page.close()
    assert blocked.startswith("http://192.0.2.1")


def test_a_port_in_use_is_refused_in_one_line(address):
    host, port = urlsplit(address).netloc.split(":")
    command = [sys.executable, "-m", "repmlp_cli", "explore", str(FROZEN), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    error = " ".join(done.stderr.split())
    assert error.endswith(f"cannot listen on port {port} of {host}, which may be in use: choose another one")
