"""What comes out is what went in, and a file is as long as the likelihood says."""

import copy
import math
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from coding_common import damage
from hf_latentgen import (
    AAEConfig,
    AAEModel,
    LevelsImageProcessor,
    LocalTransformerConfig,
    LocalTransformerForCausalLM,
    LocalTransformerForImageGeneration,
    VAEConfig,
    VAEModel,
)
from hf_latentgen.coding import (
    CompressedFileError,
    compress,
    compress_to,
    decompress,
    decompress_from,
    integer_ring,
    read_info,
)
from hf_latentgen.coding import compression as compression_module
from hf_latentgen.coding.codecs import BitsBackCodec, ByteCodec, PixelCodec
from hf_latentgen.coding.container import FORMAT_VERSION, Writer


def payload_bits(compressed):
    return 8 * int(read_info(compressed).entries["length"].sum())


def test_images_come_back(images):
    compressed = compress(images.model, images.processor, images.data)
    assert torch.equal(decompress(images.model, images.processor, compressed), images.data)
    assert len(read_info(compressed).entries) >= 2


@pytest.mark.parametrize("kind", ["empty", "one", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("adapt", [False, True])
def test_bytes_come_back(text, kind, adapt):
    data = {"empty": b"", "one": b"\xff", "all": text.data}[kind]
    compressed = compress(text.model, text.processor, data, adapt=adapt)
    assert decompress(text.model, text.processor, compressed) == data


@pytest.mark.parametrize("kind", ["grey", "spans", "text", "text that teaches"])
def test_what_is_coded_with_whole_numbers_comes_back(kind, make_images, text, monkeypatch):
    """As a model does whose keys and values are too many for the caches; and the file is as long."""
    case = text if kind.startswith("text") else make_images(kind, 26)
    data, adapt = case.data[:700] if case is text else case.data, kind == "text that teaches"
    usual = compress(case.model, case.processor, data, adapt=adapt)
    monkeypatch.setattr(integer_ring, "CACHE_BYTES", 0)
    compressed = compress(case.model, case.processor, data, adapt=adapt, verify=False)
    back = decompress(case.model, case.processor, compressed)
    assert back == data if case is text else torch.equal(back, data)
    assert payload_bits(compressed) <= 1.005 * payload_bits(usual) + 32
    assert compressed != usual


def test_no_image_comes_back_as_none(images):
    compressed = compress(images.model, images.processor, images.data[:0])
    assert decompress(images.model, images.processor, compressed).shape == images.data[:0].shape


@pytest.mark.parametrize("kind", ["grey", "colour", "spans"])
def test_a_file_is_as_long_as_the_exact_likelihood_says(kind, make_images, monkeypatch):
    monkeypatch.setattr(PixelCodec, "chunk", 1000)
    monkeypatch.setattr(PixelCodec, "batch", 150)
    case = make_images(kind, 300)
    bits = case.model.double().code_lengths(case.data).sum().item()
    compressed = compress(case.model, case.processor, case.data)
    assert bits <= payload_bits(compressed) <= 1.005 * bits + 32
    assert 8 * len(compressed) <= payload_bits(compressed) + 8 * 260


@pytest.mark.slow
def test_text_is_as_long_as_the_exact_likelihood_says(text, monkeypatch):
    monkeypatch.setattr(ByteCodec, "chunk", 4000)
    model = text.model.double()
    ids = torch.tensor([[257, *text.data]])
    logits = model(ids[:, :-1]).logits[0, :, :256].log_softmax(-1)
    bits = -logits.gather(1, ids[0, 1:, None]).sum().item() / math.log(2)
    assert bits <= payload_bits(compress(model, text.processor, text.data)) <= 1.005 * bits + 32


@pytest.mark.parametrize("kind", ["vae", "ladder"])
def test_bits_back_reaches_the_bound(kind, make_images, monkeypatch):
    monkeypatch.setattr(BitsBackCodec, "chunk", 4000)
    monkeypatch.setattr(BitsBackCodec, "batch", 16)
    case = make_images(kind, 1000)
    model = case.model
    bits = model.bits_per_dim(case.data, generator=torch.Generator().manual_seed(2)).double().sum().item()
    bits *= model.config.num_dims
    # The latents of the first image are written in full: eight bits and a half each where the posterior is the prior.
    assert abs(payload_bits(compress(model, case.processor, case.data)) - bits) <= 0.02 * bits + 9 * model.num_latents


def test_many_latents_of_small_images_cost_a_few_bits_once(monkeypatch):
    """While the stack is short, latents have coarse steps: those of the first image cost little, others are drawn."""
    monkeypatch.setattr(BitsBackCodec, "chunk", 4000)
    monkeypatch.setattr(BitsBackCodec, "batch", 16)
    torch.manual_seed(0)
    config = VAEConfig(
        architecture="resnet", image_size=16, num_levels=2, latent_dim=4, hidden_channels=(8, 8), ladder_channels=(8,)
    )
    model = VAEModel(config).eval()
    processor = LevelsImageProcessor(size={"height": 16, "width": 16}, num_levels=2)
    levels = torch.randint(0, 2, (200, 1, 16, 16), dtype=torch.uint8)
    bits = model.bits_per_dim(levels, generator=torch.Generator().manual_seed(2)).double().sum().item() * 256
    compressed = compress(model, processor, levels)
    assert torch.equal(decompress(model, processor, compressed), levels)
    assert payload_bits(compressed) - bits <= 4 * model.num_latents


@pytest.mark.slow
def test_learning_while_coding_makes_a_smaller_file(text, monkeypatch):
    # Twenty steps must show, in place of thousands.
    monkeypatch.setattr("hf_latentgen.coding.codecs.ADAPT_STRIDE", 64)
    monkeypatch.setattr("hf_latentgen.coding.codecs.ADAPT_LEARNING_RATE", 1e-2)
    data = text.data * 3
    fixed, learned = (compress(text.model, text.processor, data, adapt=adapt, verify=False) for adapt in (False, True))
    assert payload_bits(learned) < 0.99 * payload_bits(fixed)


@pytest.mark.slow
def test_compression_leaves_the_model_as_it_was(text):
    before = copy.deepcopy(text.model.state_dict())
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    compress(text.model, text.processor, text.data, adapt=True)
    after = text.model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, is_deterministic)


def test_pictures_and_their_names_come_back(grey, tmp_path):
    pictures = grey.processor.post_process_images(grey.data)
    names = [f"folder/{index}.png" for index in range(len(pictures))]
    info = compress_to(tmp_path / "a.hlg", grey.model, grey.processor, iter(pictures), names=names)
    assert info.names == tuple(names)
    assert info.size == (tmp_path / "a.hlg").stat().st_size
    assert info.bits_per_dim == 8 * info.size / grey.data.numel()
    with (tmp_path / "a.hlg").open("rb") as file:
        assert torch.equal(decompress(grey.model, grey.processor, file), grey.data)


@pytest.mark.slow
def test_a_stream_is_read_as_it_is_written(grey, monkeypatch):
    """No more images are read ahead than the workers have at hand."""
    read, ahead = 0, []

    def stream():
        nonlocal read
        for image in grey.data.repeat(8, 1, 1, 1):
            read += 1
            yield image

    add = Writer.add

    def watched(writer, payload, data):
        ahead.append(read - writer.count)
        add(writer, payload, data)

    monkeypatch.setattr(Writer, "add", watched)
    compress(grey.model, grey.processor, stream(), verify=False)
    assert max(ahead) <= PixelCodec.chunk * (6 + compression_module.MOST_WORKERS) < read


def test_a_saved_model_reads_the_file(grey, grey_file, tmp_path):
    grey.model.save_pretrained(tmp_path)
    again = LocalTransformerForImageGeneration.from_pretrained(tmp_path)
    assert torch.equal(decompress(again, grey.processor, grey_file), grey.data)
    assert read_info(compress(again, grey.processor, grey.data)).header.model_id == tmp_path.name


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_the_model_does_not_know_is_refused(grey):
    model, processor, data = grey.model, grey.processor, grey.data
    refused(lambda: compress(model, processor, data[:, :, :4]), "pixel_values", "[B, 1, 5, 5]", "4, 5]")
    refused(lambda: compress(model, processor, data.repeat(1, 3, 1, 1)), "pixel_values", "[B, 1, 5, 5]", "3, 5, 5]")
    refused(lambda: compress(model, processor, data + 1), "0 ... 2", "to 3")
    refused(lambda: compress(model, processor, data.float()), "float32")
    refused(lambda: compress(model, processor, data, names=["a"]), "names", "26", "got 1")
    refused(lambda: compress(model, processor, data, adapt=True), "adapt")
    pictures = processor.post_process_images(data)
    for changed, words in (
        (pictures[0].resize((6, 6)), ("5x5", "6x6")),
        (pictures[0].convert("RGB"), ("num_channels=1", "RGB")),
        (pictures[0].point(lambda value: value // 2), ("num_levels=3",)),
    ):
        refused(lambda changed=changed: compress(model, processor, [pictures[0], changed]), *words)
    other = LevelsImageProcessor(size={"height": 5, "width": 5}, num_levels=4)
    refused(lambda: compress(model, other, data), "num_levels", "3", "got 4")


def test_models_without_a_code_are_refused(grey):
    aae = AAEModel(AAEConfig(architecture="mlp", image_size=5, num_levels=3, latent_dim=2, hidden_channels=(8,)))
    refused(lambda: compress(aae, grey.processor, grey.data), "likelihood", "adversarial autoencoder")
    config = grey.model.config.to_dict() | {"is_class_conditional": True, "num_labels": 2}
    told = LocalTransformerForImageGeneration(type(grey.model.config)(**config))
    refused(lambda: compress(told, grey.processor, grey.data), "is_class_conditional")
    grey.model.lm_head.weight.data[0, 0] = math.nan
    refused(lambda: compress(grey.model, grey.processor, grey.data), "lm_head.weight", "NaN")


def test_missing_coder_is_named(grey, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"hf-latentgen\[compress\]"):
        compress(grey.model, grey.processor, grey.data)


def test_an_existing_file_stays_unless_told_otherwise(grey, grey_file, tmp_path):
    path = tmp_path / "a.hlg"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"a.hlg.*--force"):
        compress_to(path, grey.model, grey.processor, grey.data)
    assert path.read_bytes() == b"mine"
    compress_to(path, grey.model, grey.processor, grey.data, overwrite=True)
    assert path.read_bytes() == grey_file
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["disk full", "other arithmetic"])
def test_nothing_remains_of_a_file_that_was_not_finished(grey, tmp_path, monkeypatch, fault):
    if fault == "disk full":
        monkeypatch.setattr(Writer, "finish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    else:
        monkeypatch.setattr(PixelCodec, "decode", lambda *given: [np.zeros((given[2][0], 1, 5, 5))])
    with pytest.raises((OSError, ArithmeticError), match=r"No space|not what was encoded"):
        compress_to(tmp_path / "a.hlg", grey.model, grey.processor, grey.data)
    assert list(tmp_path.iterdir()) == []


def test_another_reader_is_told_what_differs(grey, grey_file, text, make_images, monkeypatch):
    def message(model=grey.model, processor=grey.processor):
        with pytest.raises(CompressedFileError) as caught:
            decompress(model, processor, grey_file)
        return str(caught.value)

    assert message(text.model, text.processor).startswith("model_type must be 'latentgen_local_transformer_image'")
    vae = make_images("vae")
    assert message(vae.model, vae.processor).startswith("model_type must be")
    other = copy.deepcopy(grey.model)
    other.model.norm.weight.data[0] += 1e-3
    assert message(other).startswith("weights_sha256 must be")
    other = copy.deepcopy(grey.model)
    other.config.rope_theta = 5000.0
    assert message(other).startswith("config_digest must be")
    build = compression_module.build()
    monkeypatch.setattr(compression_module, "build", lambda: build | {"torch": "2.0.0"})
    assert "torch must be" in message()
    assert "got '2.0.0'" in message()


def test_other_arithmetic_is_found_out(grey, grey_file, monkeypatch):
    monkeypatch.setattr("hf_latentgen.coding.codecs.probabilities", lambda logits: np.full((len(logits), 3), 1 / 3))
    with pytest.raises(CompressedFileError, match=r"chunk 0 \(images 0 to 15\) does not decode"):
        decompress(grey.model, grey.processor, grey_file)


@pytest.mark.parametrize("kind", ["grey", "vae", "text"])
def test_a_damaged_chunk_costs_no_other(kind, make_images, text):
    case = text if kind == "text" else make_images(kind, 50)
    compressed = bytearray(compress(case.model, case.processor, case.data))
    info = read_info(bytes(compressed))
    compressed[info.start + int(info.entries["length"][0]) + 3] ^= 16
    chunks = list(decompress_from(bytes(compressed), case.model, case.processor))
    assert [chunk.index for chunk in chunks if chunk.error is not None] == [1]
    assert str(chunks[1].error).startswith(f"chunk 1 ({'bytes' if kind == 'text' else 'images'} {info.items(1)[0]} to")
    for chunk in chunks:
        items = slice(chunk.items.start, chunk.items.stop)
        if chunk.index != 1 and kind == "text":
            assert chunk.data.tobytes() == case.data[items]
        elif chunk.index != 1:
            assert np.array_equal(chunk.data, case.data[items].numpy())
    with pytest.raises(CompressedFileError, match="chunk 1"):
        decompress(case.model, case.processor, bytes(compressed))


def test_a_damaged_chunk_costs_all_that_learned_from_it(text):
    compressed = bytearray(compress(text.model, text.processor, text.data, adapt=True))
    info = read_info(bytes(compressed))
    assert len(info.entries) == 4
    compressed[info.start] ^= 1
    chunks = list(decompress_from(bytes(compressed), text.model, text.processor))
    assert "is damaged" in str(chunks[0].error)
    assert all("adapt=True" in str(chunk.error) for chunk in chunks[1:])


def test_300_damaged_files_are_300_errors(grey, grey_file):
    rng = random.Random(0)
    for number in range(300):
        with pytest.raises(CompressedFileError):
            decompress(grey.model, grey.processor, damage(grey_file, number, rng))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "magic"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "magic"),
        (lambda whole: whole[:10], "truncated"),
        (lambda whole: whole[:60], "header"),
        (lambda whole: whole[:-1], "truncated"),
        (lambda whole: whole + b"\0", "truncated, or more"),
        (lambda whole: whole[:8] + b"\1" + whole[9:], f"version must be {FORMAT_VERSION}, got 1"),
        (lambda whole: whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:], "index"),
    ],
)
def test_what_is_no_whole_file_is_named(grey_file, content, complaint):
    with pytest.raises(CompressedFileError, match=complaint):
        read_info(content if isinstance(content, bytes) else content(grey_file))


def test_the_header_is_all_that_a_reader_must_share(grey):
    grey.model.config._name_or_path = "owner/name"
    header = read_info(compress(grey.model, grey.processor, grey.data)).header
    assert (header.codec, header.model_id, header.shape, header.num_levels) == ("pixels", "owner/name", (1, 5, 5), 3)
    assert len(header.weights_sha256) == 64
    assert header.torch == torch.__version__
    assert replace(header, chunk=1).pack() != header.pack()


def test_the_last_groups_are_equally_large():
    sizes = [[len(group) for group in compression_module._groups_in_step(range(count), 20)] for count in range(95)]
    assert [sizes[count] for count in (0, 1, 16, 17, 40, 41, 80, 81)] == [
        [], [1], [16], [9, 8], [20, 20], [11, 11, 11, 8], [20, 20, 20, 20], [20, 16, 16, 16, 13]
    ]  # fmt: skip
    assert [sum(parts) for parts in sizes] == list(range(95))
    assert list(compression_module._groups_in_step(range(7), 1)) == [[number] for number in range(7)]


def test_a_wide_window_makes_small_groups(text, monkeypatch):
    monkeypatch.undo()
    assert ByteCodec(text.model, adapt=False).group == 64
    assert ByteCodec(text.model, adapt=True).group == 16
    fields = text.model.config.to_dict() | {"window": 2**15, "layer_windows": [32, 2**15]}
    wide = LocalTransformerForCausalLM(LocalTransformerConfig(**fields))
    # 8 bytes of 16 keys and values at 32,768 + 32 places.
    assert ByteCodec(wide, adapt=False).group == 2**29 // (8 * 2 * 16 * (2**15 + 32)) == 63


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_any_number_of_workers_and_threads_in_any_process_writes_and_reads_the_same_file(make_images, text, tmp_path):
    kinds = {"grey": make_images("grey", 60), "ladder": make_images("ladder", 60), "text": text}
    for kind, case in kinds.items():
        case.model.save_pretrained(tmp_path / kind)
        case.processor.save_pretrained(tmp_path / kind)
        data = np.frombuffer(case.data, np.uint8) if kind == "text" else case.data.numpy()
        np.save(tmp_path / kind / "data.npy", data)
    # Each reads what the other has written.
    pairs = ((1, 2), (2, 1))
    both = [subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), *map(str, pair)]) for pair in pairs]
    assert [process.wait(timeout=140) for process in both] == [0, 0]
    for kind in kinds:
        assert (tmp_path / kind / "1.hlg").read_bytes() == (tmp_path / kind / "2.hlg").read_bytes()


PROCESS = """
import sys
import time
from pathlib import Path

import numpy as np
import torch

from hf_latentgen import load
from hf_latentgen.coding import codecs, compress_to, compression, decompress

root, number, other = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(number)
compression._workers = lambda: number
codecs.PixelCodec.chunk, codecs.PixelCodec.batch, codecs.BitsBackCodec.chunk, codecs.ByteCodec.chunk = 16, 6, 24, 300
codecs.ByteCodec.group = 2
cases = []
for folder in root.iterdir():
    found = load(folder, device="cpu")
    data = np.load(folder / "data.npy")
    cases.append((folder, found, data.tobytes() if folder.name == "text" else torch.from_numpy(data)))
for folder, found, data in cases:
    compress_to(folder / f"{number}.hlg", found.model, found.processor, data, verify=False)
for folder, found, data in cases:
    # A file appears when it is whole.
    while not (written := folder / f"{other}.hlg").exists():
        time.sleep(0.1)
    back = decompress(found.model, found.processor, written.read_bytes())
    assert back == data if folder.name == "text" else torch.equal(back, data)
assert torch.get_num_threads() == number
"""
