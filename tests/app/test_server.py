"""The demo as a program of its own, asked by the client of gradio."""

import hashlib
import json
import random
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app_common import last
from hf_latentgen.app import inference
from hf_latentgen.app.checkpoints import load_checkpoints
from hf_latentgen.app.inference import ANY_CLASS

client_module = pytest.importorskip("gradio_client", reason='gradio is not installed: pip install -e ".[app]"')

# gradio warns about itself.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]
SAMPLE = ["vae", 9, 1, ANY_CLASS, "mean", 0]
ENDPOINTS = {
    "/sample": SAMPLE,
    "/latent_map": ["vae_plane", 0.5, -0.5],
    "/reconstruct": ["vae", None, 0],
    "/reconstruct_file": ["vae", None, 0],
    "/reconstruct_digit": ["vae", 3, 0],
    "/interpolate": ["vae", 3, 8, 5],
    "/complete": ["pixels", 7, 50, 3, 1, 5],
    "/text": ["bytes", "To be", 40, 1, 3],
}
# A loaded model of another family for each of them.
MISFITS = {name: "bytes" if name != "/text" else "vae" for name in ENDPOINTS} | {
    "/latent_map": "vae",
    "/complete": "vae_plane",
    "/interpolate": "pixels",
}


@pytest.fixture(scope="module")
def client(server):
    return connect(server)


def connect(server):
    # Five seconds, the default, are little on a busy machine.
    patience = {"timeout": 120}
    return client_module.Client(server.url, verbose=False, download_files=str(server.folder), httpx_kwargs=patience)


def ask(client, endpoint, arguments):
    return client.predict(*arguments, api_name=endpoint)


def drawing(path, layer=None):
    file, other = (client_module.handle_file(str(name)) for name in (path, layer or path))
    return {"background": other, "layers": [other], "composite": file, "id": None}


@pytest.fixture(scope="module")
def sketch(tmp_path_factory):
    picture = Image.new("RGB", (280, 280), "white")
    picture.paste("black", (120, 40, 160, 240))
    path = tmp_path_factory.mktemp("sketch") / "one.png"
    picture.save(path)
    return path


def show(capsys, text):
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def pixels_of(path):
    with Image.open(path) as found:
        return found.tobytes()


def same_picture(path, expected):
    with Image.open(path) as found:
        return np.array_equal(np.asarray(found.convert("RGB")), np.asarray(expected.convert("RGB")))


def test_the_names_of_the_endpoints_are_stable(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    # What a picture costs is asked of all models at once.
    assert set(named) == {*ENDPOINTS, "/bits", "/bits_of_digit"}


def test_bytes_of_a_drawing_and_of_a_test_image_are_counted(client, sketch):
    for endpoint, argument in (("/bits", drawing(sketch)), ("/bits_of_digit", 3)):
        table, maps = ask(client, endpoint, [argument])
        assert all(word in table for word in ("| vae |", "| pixels |", "| PNG |", "| WebP, lossless |"))
        assert [entry["caption"] for entry in maps] == ["pixels"]
    for endpoint, argument in (("/bits", None), ("/bits_of_digit", 10_000)):
        with pytest.raises(client_module.exceptions.AppError, match=r"drawing is empty|Image number"):
            ask(client, endpoint, [argument])


def test_a_page_without_a_model_for_a_tab_says_so_and_has_nothing_to_press(folders):
    from hf_latentgen.app.interface import build

    components = build(load_checkpoints([str(folders["vae"])])).get_config_file()["components"]
    buttons = {part["props"].get("value"): part["props"] for part in components if part["type"] == "button"}
    assert {
        name: buttons[name]["interactive"] for name in ("Draw", "Reconstruct the drawing", "Write", "Complete")
    } == {
        "Draw": True,
        "Reconstruct the drawing": True,
        "Write": False,
        "Complete": False,
    }
    # One bar of tabs, all of them in it.
    kinds = [part["type"] for part in components]
    assert (kinds.count("tabs"), kinds.count("tabitem")) == (1, 7)
    texts = [part["props"].get("value", "") for part in components if part["type"] == "markdown"]
    assert any("needs a transformer of text" in text for text in texts)


def test_the_page_tells_no_path_of_the_machine(server, folders):
    with urllib.request.urlopen(f"{server.url.rstrip('/')}/config") as answer:
        config = json.load(answer)
    shown = json.dumps([part["props"].get("value") for part in config["components"] if part["type"] == "markdown"])
    assert str(folders["vae"].parent) not in shown
    assert str(Path.home()) not in shown


def test_pictures_are_those_of_the_functions_behind(client, checkpoints):
    assert same_picture(ask(client, "/sample", SAMPLE), last(inference.sample(checkpoints["vae"], *SAMPLE[1:])))
    classes = ["aae_classes", 4, 1, 3, "mean", 1]
    assert same_picture(
        ask(client, "/sample", classes), last(inference.sample(checkpoints["aae_classes"], *classes[1:]))
    )
    plane, point = checkpoints["vae_plane"], (0.5, -0.5)
    picture, decoded = ask(client, "/latent_map", ["vae_plane", *point])
    assert same_picture(picture, inference.marked_map(plane, *point))
    assert same_picture(decoded, inference.decode_point(plane, *point))
    strip = ask(client, "/interpolate", ["vae", 3, 8, 5])
    assert same_picture(strip, inference.interpolate(checkpoints["vae"], 3, 8, 5))


def test_a_drawing_a_file_and_a_digit_are_reconstructed(client, checkpoints, sketch):
    vae = checkpoints["vae"]
    levels = inference.levels_from_drawing(vae, Image.open(sketch))
    expected = inference.reconstruct(vae, levels, 0)
    for endpoint, given in (
        ("/reconstruct", drawing(sketch)),
        ("/reconstruct_file", client_module.handle_file(str(sketch))),
    ):
        seen, drawn, figure, words = ask(client, endpoint, ["vae", given, 0])
        assert same_picture(seen, expected[0])
        assert same_picture(drawn, expected[1])
        assert same_picture(figure, expected[2])
        assert words == expected[3]
    # What is under the drawing is not read at all, so nothing enormous can hide there.
    under = sketch.with_name("notes.png")
    under.write_text("no picture")
    assert same_picture(ask(client, "/reconstruct", ["vae", drawing(sketch, under), 0])[0], expected[0])
    for given in (drawing(sketch), client_module.handle_file(str(sketch))):
        endpoint = "/reconstruct" if isinstance(given, dict) and "composite" in given else "/reconstruct_file"
        assert ask(client, endpoint, ["aae_colour", given, 0])[-1].startswith("**")
    seen, *_, words = ask(client, "/reconstruct_digit", ["aae", 3, 0])
    assert same_picture(seen, inference.reconstruct(checkpoints["aae"], inference.digit(checkpoints["aae"], 3), 0)[0])
    assert "mean squared error" in words


def test_what_takes_long_shows_how_far_it_is(client, checkpoints):
    for endpoint, expected in (
        ("/sample", list(inference.sample(checkpoints["pixels"], *SAMPLE[1:]))),
        ("/complete", list(inference.complete(checkpoints["pixels"], 7, 50, 3, 1, 5))),
        ("/text", list(inference.continue_text(checkpoints["bytes"], "To be", 40, 1, 3))),
    ):
        arguments = ["pixels", *SAMPLE[1:]] if endpoint == "/sample" else ENDPOINTS[endpoint]
        job = client.submit(*arguments, api_name=endpoint)
        final = job.result()
        assert len(job.outputs()) == len(expected) > 2
        assert final == expected[-1] if endpoint == "/text" else same_picture(final, expected[-1])


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", ["misfit", "unknown"])
def test_a_checkpoint_that_does_not_fit_gets_a_readable_answer(client, endpoint, name):
    model = MISFITS[endpoint] if name == "misfit" else "nowhere"
    with pytest.raises(client_module.exceptions.AppError, match=f"This needs an? .*, got '{model}' .*Fitting: "):
        ask(client, endpoint, [model, *ENDPOINTS[endpoint][1:]])
    # It still serves.
    assert Path(ask(client, "/sample", SAMPLE)).is_file()


def test_bad_input_gets_a_readable_answer_and_the_next_request_is_served(client, tmp_path):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (280, 280), "white").save(blank)
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    wide = tmp_path / "wide.png"
    Image.new("1", (20_000, 20_000)).save(wide)
    sheet = tmp_path / "sheet.png"
    Image.new("1", (9000, 9000)).save(sheet)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(11 * 2**20))
    file = client_module.handle_file
    for endpoint, arguments, message in (
        ("/reconstruct", ["vae", None, 0], "The drawing is empty"),
        ("/reconstruct", ["vae", drawing(blank), 0], "The drawing is empty"),
        ("/reconstruct", ["vae", drawing(text), 0], "^'notes.png' is not a picture that can be read.*JPEG.$"),
        ("/reconstruct", ["vae", drawing(sheet), 0], "^The picture is 9000×9000 pixels; at most 4096 pixels a side.$"),
        ("/reconstruct_file", ["vae", None, 0], "No file was given"),
        ("/reconstruct_file", ["vae", file(str(text)), 0], "'notes.png' is not a picture"),
        ("/reconstruct_file", ["vae", file(str(wide)), 0], "at most 4096 pixels a side"),
        ("/reconstruct_file", ["vae", file(str(large)), 0], "exceeds the maximum file size"),
        ("/reconstruct_digit", ["vae", 300, 0], "Image number must be in 0 to 299"),
        ("/interpolate", ["vae", -1, 3, 5], "minimum"),
        ("/sample", ["vae", 9, 1, 3, "mean", 0], "knows no classes"),
        ("/sample", ["vae", 1000, 1, ANY_CLASS, "mean", 0], "maximum"),
        ("/sample", ["vae", 9, 1, ANY_CLASS, "mean", None], "Seed must be"),
        ("/sample", ["aae", 9, 0.5, ANY_CLASS, "mean", 0], "Temperature must be 1"),
        ("/text", ["bytes", None, 5, 1, 0], "Beginning must be a text"),
        ("/text", ["bytes", "x" * 3000, 5, 1, 0], "at most 2000|max_length"),
    ):
        # An upload is refused by an error of HTTP, everything else by one of gradio.
        with pytest.raises(Exception, match=message):
            ask(client, endpoint, arguments)
        assert Path(ask(client, "/sample", SAMPLE)).is_file()


def test_requests_of_eight_clients_do_not_disturb_each_other(server, client, capsys):
    asked = [
        ("/sample", [name, 9, 1, ANY_CLASS, "sample", seed]) for name in ("vae", "aae", "pixels") for seed in (1, 2)
    ]
    asked += [("/latent_map", ["vae_plane", point, point]) for point in (-1, 1)]
    asked += [("/reconstruct_digit", ["vae", 5, seed]) for seed in (1, 2)]
    asked += [("/interpolate", ["vae", 3, last, 5]) for last in (8, 9)]
    asked += [("/complete", ["pixels", 7, 50, 3, 1, seed]) for seed in (1, 2)]
    asked += [("/text", ["bytes", "To be", 40, 1, seed]) for seed in (1, 2)]
    requests = list(range(len(asked))) * 3
    random.Random(0).shuffle(requests)

    def answer(client, index):
        found = ask(client, *asked[index])
        parts = found if isinstance(found, (tuple, list)) else [found]
        contents = [pixels_of(part) if str(part).startswith(str(server.folder)) else part.encode() for part in parts]
        return index, hashlib.sha256(b"".join(contents)).hexdigest()

    def work(mine):
        own = connect(server)
        return [answer(own, index) for index in mine]

    alone = dict(answer(client, index) for index in range(len(asked)))
    assert len(set(alone.values())) == len(asked)
    begin = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        answers = [pair for part in pool.map(work, [requests[start::8] for start in range(8)]) for pair in part]
    show(capsys, f"{len(requests)} mixed requests of 8 clients: {time.perf_counter() - begin:.1f} s")
    assert len(answers) == len(requests)
    assert [pair for pair in answers if alone[pair[0]] != pair[1]] == []


def test_samples_of_a_vae_come_within_a_second(client, capsys):
    """On two idle cores; the bound leaves room for a busy machine."""
    seconds = []
    for seed in range(5):
        begin = time.perf_counter()
        ask(client, "/sample", ["vae_mnist", 36, 1, ANY_CLASS, "mean", seed])
        seconds.append(time.perf_counter() - begin)
    show(capsys, f"36 samples of a VAE of 28x28 pixels: {', '.join(f'{second:.2f}' for second in seconds)} s")
    assert min(seconds) < 5
