"""The demo in a real browser: each tab is operated, and what it shows is compared with what it should.

Screenshots are kept in the folder that HF_LATENTGEN_SCREENSHOTS names.
"""

import io
import os
import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app_common import last
from hf_latentgen.app import inference
from hf_latentgen.app.figures import MAP_SIZE
from hf_latentgen.app.inference import ANY_CLASS

playwright = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[browser]"')
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there: apt-get install chromium"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(600),
]
# The first three let it run as root in a container, the others keep it from calling its maker.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking"
)
FLAGS += " --disable-component-update --disable-sync --disable-default-apps"
PATIENCE = 120_000


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    named = os.environ.get("HF_LATENTGEN_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield browser
        browser.close()


def open_page(browser, url, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    page.goto(url, wait_until="domcontentloaded")
    page.locator("#sample_picture img").wait_for()
    return page


@pytest.fixture(scope="module")
def visit(server, browser):
    """The page, and the addresses that it has asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url, wait_until="domcontentloaded")
    page.locator("#sample_picture img").wait_for()
    return page, asked, errors


@pytest.fixture
def page(visit, screenshots, request):
    yield visit[0]
    visit[0].screenshot(path=screenshots / f"{request.node.name.removeprefix('test_')}.png", full_page=True)


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def choose_model(page, tab, name):
    tab.get_by_role("combobox", name="Model", exact=True).click()
    page.get_by_role("option", name=re.compile(f"^{name}:")).click()
    # The list closes a moment later, and its entries would answer to the name of the next thing to click.
    page.get_by_role("option").first.wait_for(state="hidden")


def shown(page, selector):
    """The picture that an element shows, or None."""
    image = page.locator(f"{selector} img")
    if image.count() == 0:
        return None
    with urllib.request.urlopen(image.get_attribute("src")) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def wait_for_picture(page, selector, expected):
    expected = np.asarray(expected.convert("RGB"))
    wait_for(lambda: np.array_equal(shown(page, selector), expected), f"the picture in {selector}")


def click_at(page, selector, x, y, size):
    """A click at a pixel of a picture, however large the page shows it."""
    image = page.locator(f"{selector} img")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    # The picture fills its element in one direction and is centred in the other.
    scale = min(box["width"] / size[0], box["height"] / size[1])
    left = (box["width"] - scale * size[0]) / 2 + x * scale
    top = (box["height"] - scale * size[1]) / 2 + y * scale
    image.click(position={"x": left, "y": top})


def click_digit(page, selector, checkpoint, place):
    sheet = inference.digit_sheet(checkpoint)
    step = (sheet.width - 2) / 10
    row, column = divmod(place, 10)
    click_at(page, selector, (column + 0.5) * step, (row + 0.5) * step, sheet.size)
    return inference.chosen_digits(checkpoint)[place]


def number_in(page, selector):
    return float(page.locator(f"{selector} input[type=number]").input_value())


def test_sample(page, checkpoints):
    tab = open_tab(page, "Sample")
    wait_for_picture(
        page, "#sample_picture", last(inference.sample(checkpoints["vae_plane"], 36, 1, ANY_CLASS, "mean", 0))
    )
    choose_model(page, tab, "aae_classes")
    wait_for_picture(
        page, "#sample_picture", last(inference.sample(checkpoints["aae_classes"], 36, 1, ANY_CLASS, "mean", 0))
    )
    tab.get_by_role("combobox", name="Class", exact=True).click()
    page.get_by_role("option", name="3", exact=True).click()
    tab.get_by_role("button", name="Next seed").click()
    wait_for_picture(page, "#sample_picture", last(inference.sample(checkpoints["aae_classes"], 36, 1, 3, "mean", 1)))


def test_latent_map(page, checkpoints):
    open_tab(page, "Latent map")
    checkpoint = checkpoints["vae_plane"]
    wait_for_picture(page, "#map", inference.marked_map(checkpoint, 0, 0))
    click_at(page, "#map", 400, 150, MAP_SIZE)
    wait_for(lambda: number_in(page, "#first") != 0, "the click to move the sliders")
    first, second = inference.clicked_point(checkpoint, 400, 150)
    wait_for(lambda: abs(number_in(page, "#second") - second) < 0.1, "the second slider")
    assert abs(number_in(page, "#first") - first) < 0.1
    field = page.locator("#first input[type=number]")
    field.fill("-1.5")
    field.press("Enter")
    point = -1.5, number_in(page, "#second")
    wait_for_picture(page, "#decoded", inference.decode_point(checkpoint, *point))
    wait_for_picture(page, "#map", inference.marked_map(checkpoint, *point))


def test_reconstruct(page, checkpoints, tmp_path):
    checkpoint = checkpoints["vae_plane"]
    tab = open_tab(page, "Reconstruct")
    canvas = page.locator("#drawing canvas").first
    canvas.wait_for()
    button = tab.get_by_role("button", name="Reconstruct the drawing")
    button.click()
    page.get_by_text("The drawing is empty").wait_for()
    # The page itself takes up the brush.
    page.locator("#drawing").get_by_text("select the draw tool").wait_for(state="detached")
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 80)
    page.mouse.down()
    page.mouse.move(x, y + 80, steps=12)
    page.mouse.up()

    def shows_the_stroke():
        """A bar from top to bottom, in the middle."""
        levels = shown(page, "#seen")
        return levels[10:-10, levels.shape[1] // 2].min() > 100 and levels[10:-10, 8].max() < 10

    def draws_a_stroke():
        button.click()
        time.sleep(2)
        return shows_the_stroke()

    wait_for(draws_a_stroke, "the stroke to reach the server")
    assert re.search(r"^\d\.\d{3} bits per dimension", page.locator("#score").inner_text())
    assert "300 test images" in page.locator("#score").inner_text()
    # Another model draws the same again, and nothing of the first one stays.
    choose_model(page, tab, "aae")
    page.get_by_text("mean squared error on [-1, 1].").wait_for()
    assert shows_the_stroke()
    choose_model(page, tab, "vae_plane")
    page.get_by_text("bits per dimension.").wait_for()
    assert shows_the_stroke()

    text = tmp_path / "notes.png"
    text.write_text("no picture")
    upload = page.locator("#file input[type=file]")
    upload.set_input_files(text)
    page.get_by_text("is not a picture").wait_for()
    index = click_digit(page, "#digits", checkpoint, 13)
    expected = inference.reconstruct(checkpoint, inference.digit(checkpoint, index), 0)
    wait_for_picture(page, "#seen", expected[0])
    wait_for_picture(page, "#reconstruction", expected[1])
    choose_model(page, tab, "vae")
    other = checkpoints["vae"]
    wait_for_picture(page, "#reconstruction", inference.reconstruct(other, inference.digit(other, index), 0)[1])
    choose_model(page, tab, "vae_plane")
    wait_for_picture(page, "#reconstruction", expected[1])


def test_an_enormous_file_is_refused_in_the_page(page, checkpoints, tmp_path):
    open_tab(page, "Reconstruct")
    remove = page.locator("#file").get_by_role("button", name=re.compile("clear|remove", re.IGNORECASE))
    if remove.count():
        remove.first.click()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(11 * 2**20))
    page.locator("#file input[type=file]").set_input_files(large)
    page.get_by_text(re.compile("maximum allowed size|too large|exceed", re.IGNORECASE)).first.wait_for()
    checkpoint = checkpoints["vae_plane"]
    index = click_digit(page, "#digits", checkpoint, 4)
    wait_for_picture(page, "#seen", inference.reconstruct(checkpoint, inference.digit(checkpoint, index), 0)[0])


def test_interpolate(page, checkpoints):
    checkpoint = checkpoints["vae_plane"]
    open_tab(page, "Interpolate")
    page.locator("#interpolation img").wait_for()
    first = click_digit(page, "#from_sheet", checkpoint, 6)
    second = click_digit(page, "#to_sheet", checkpoint, 16)
    wait_for_picture(page, "#interpolation", inference.interpolate(checkpoint, first, second, 9))


def test_complete(page, checkpoints):
    checkpoint = checkpoints["pixels"]
    tab = open_tab(page, "Complete")
    tab.get_by_role("button", name="Complete").click()
    start = inference.chosen_digits(checkpoint)[0]
    expected = last(inference.complete(checkpoint, start, 50, 5, 1, 0))
    wait_for_picture(page, "#completion", expected)
    index = click_digit(page, "#sheet", checkpoint, 9)
    expected = last(inference.complete(checkpoint, index, 50, 5, 1, 0))
    wait_for_picture(page, "#completion", expected)


def test_text(page, checkpoints):
    tab = open_tab(page, "Text")
    prompt, written = (page.locator(f"#{name} textarea") for name in ("prompt", "written"))
    # First the text that is there: what is typed into a box that has only just appeared, as nobody can, may be lost.
    for text in (prompt.input_value(), "To be"):
        prompt.fill(text)
        tab.get_by_role("button", name="Write").click()
        expected = last(inference.continue_text(checkpoints["bytes"], text, 300, 0.8, 0))
        # A text area has one kind of line end.
        expected = expected.replace("\r\n", "\n").replace("\r", "\n")
        wait_for(lambda expected=expected: written.input_value() == expected, f"the whole text after {text!r}")


@pytest.fixture(scope="module")
def phone(server, browser):
    page = open_page(browser, server.url, 390, 844)
    yield page
    page.close()


# What is pressed in each tab, and where its result is.
ON_A_PHONE = {
    "Sample": ("Draw", "#sample_picture"),
    "Latent map": ("#map", "#decoded"),
    "Reconstruct": ("#digits", "#seen"),
    "Interpolate": ("#to_sheet", "#interpolation"),
    "Complete": ("Complete", "#completion"),
    "Text": ("Write", "#written"),
}


@pytest.mark.parametrize("name", ON_A_PHONE)
def test_on_a_phone_a_tab_starts_with_an_example_and_shows_its_result_where_one_looks(phone, screenshots, name):
    pressed, result = ON_A_PHONE[name]
    tab = open_tab(phone, name)
    phone.locator(f"{result} textarea" if name == "Text" else f"{result} img").wait_for()
    if name == "Text":
        wait_for(
            lambda: len(phone.locator("#written textarea").input_value()) > 20, "a text before a button is pressed"
        )
    phone.screenshot(path=screenshots / f"phone_{name}.png", full_page=True)
    control = phone.locator(pressed) if pressed.startswith("#") else tab.get_by_role("button", name=pressed, exact=True)
    control.scroll_into_view_if_needed()
    control.click()
    height = phone.viewport_size["height"]

    def is_in_view():
        box = phone.locator(result).bounding_box()
        # Scrolling ends at whole pixels.
        return box["y"] >= -1 and box["y"] + min(box["height"], 150) <= height + 1

    wait_for(is_in_view, f"the result of {name} to be seen")
    time.sleep(0.5)
    phone.screenshot(path=screenshots / f"phone_{name}_pressed.png")
    assert is_in_view()


def test_on_a_phone_all_tabs_are_seen_and_nothing_is_wider_than_the_page(phone):
    for name in ON_A_PHONE:
        tab = phone.get_by_role("tab", name=name, exact=True)
        box = tab.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        tab.click()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_on_a_phone_digits_to_choose_from_have_no_bands(phone, checkpoints):
    open_tab(phone, "Interpolate")
    sheet = inference.digit_sheet(checkpoints["vae_plane"])
    box = phone.locator("#from_sheet").bounding_box()
    assert box["height"] <= box["width"] * sheet.height / sheet.width + 8


def test_figures_are_dark_where_the_page_is(server, browser, screenshots):
    for theme, is_dark in (("light", False), ("dark", True)):
        page = open_page(browser, f"{server.url}?__theme={theme}", 1280, 900)
        open_tab(page, "Latent map")
        page.locator("#map img").wait_for()
        seen = np.asarray(Image.open(io.BytesIO(page.locator("#map img").screenshot())).convert("L"))
        page.screenshot(path=screenshots / f"map_{theme}.png")
        page.close()
        assert (np.median(seen) < 60) == is_dark
        assert (np.median(seen) > 195) != is_dark


def test_nothing_is_asked_of_another_machine_and_nothing_fails_in_the_page(visit, server):
    _, asked, errors = visit
    own = server.url.rstrip("/")
    assert len(asked) > 20
    assert [address for address in asked if not address.startswith((own, "data:", "blob:"))] == []
    assert errors == []


def test_bits_stand_among_the_tabs_and_open_with_an_example(page):
    names = [tab.inner_text() for tab in page.get_by_role("tablist").first.get_by_role("tab").all()]
    assert names == ["Sample", "Latent map", "Reconstruct", "Interpolate", "Complete", "Text", "Bits"]
    tab = open_tab(page, "Bits")
    page.locator("#heat_maps img").first.wait_for()
    assert "PNG" in page.locator("#bits").inner_text()
    tab.get_by_label("Or of the test image of this number").fill("3")
    before = page.locator("#bits").inner_text()
    tab.get_by_role("button", name="Count the bytes of the test image").click()
    wait_for(lambda: page.locator("#bits").inner_text() != before, "the bytes of another image")
