"""Files and folders become a compressed file, and come back with their names."""

import numpy as np
import pytest
from PIL import Image

from hf_latentgen.coding import CompressedFileError, compress_files, compress_to, decompress_files, read_info
from hf_latentgen.coding.container import Writer
from rows_common import names


@pytest.fixture
def folder(grey, tmp_path):
    """A folder of images, some below another folder, and of a file that is none."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    for index, picture in enumerate(grey.processor.post_process_images(grey.data)):
        name = f"more/{index}.bmp" if index % 3 == 0 else f"{index}.png"
        picture.save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_a_folder_comes_back_with_its_names(grey, folder, tmp_path):
    info = compress_files(folder, tmp_path / "a.hlg", grey.model, grey.processor)
    assert info.count == 26
    assert decompress_files(tmp_path / "a.hlg", tmp_path / "back", grey.model, grey.processor) == []
    images = [path for path in folder.rglob("*") if path.suffix in (".png", ".bmp")]
    assert len([path for path in (tmp_path / "back").rglob("*") if path.is_file()]) == len(images) == 26
    for path in images:
        back = tmp_path / "back" / path.relative_to(folder).with_suffix(".png")
        with Image.open(path) as before, Image.open(back) as after:
            assert (after.format, after.mode, after.size) == ("PNG", before.mode, before.size)
            assert after.tobytes() == before.tobytes()


def test_one_image_and_images_without_names_come_back(grey, folder, tmp_path):
    compress_files(folder / "1.png", tmp_path / "one.hlg", grey.model, grey.processor)
    decompress_files(tmp_path / "one.hlg", tmp_path / "one", grey.model, grey.processor)
    assert names(tmp_path / "one") == ["1.png"]
    compress_to(tmp_path / "some.hlg", grey.model, grey.processor, grey.data[:2])
    decompress_files(tmp_path / "some.hlg", tmp_path / "some", grey.model, grey.processor)
    assert names(tmp_path / "some") == ["000000.png", "000001.png"]


@pytest.mark.parametrize("data", [b"", b"\xff\0 not UTF-8, and longer than a chunk" * 10])
def test_a_file_of_bytes_comes_back_with_its_name(text, tmp_path, data):
    (tmp_path / "play").write_bytes(data)
    compress_files(tmp_path / "play", tmp_path / "a.hlg", text.model, text.processor)
    decompress_files(tmp_path / "a.hlg", tmp_path / "back", text.model, text.processor)
    assert names(tmp_path / "back") == ["play"]
    assert (tmp_path / "back" / "play").read_bytes() == data


def test_bits_of_an_image_of_one_bit_come_back(make_images, tmp_path):
    case = make_images("grey", 1)
    case.processor.num_levels = case.model.config.num_levels = 2
    Image.fromarray(np.eye(5) > 0).save(tmp_path / "a.png")
    case.model.lm_head.weight.data = case.model.lm_head.weight.data[:2]
    compress_files(tmp_path / "a.png", tmp_path / "a.hlg", case.model, case.processor)
    decompress_files(tmp_path / "a.hlg", tmp_path / "back", case.model, case.processor)
    with Image.open(tmp_path / "back" / "a.png") as image:
        assert np.array_equal(np.asarray(image), 255 * np.eye(5))


def test_what_cannot_come_back_is_named_and_leaves_nothing(grey, folder, tmp_path):
    before = names(tmp_path)

    def refused(*words):
        with pytest.raises(ValueError) as caught:
            compress_files(folder, tmp_path / "a.hlg", grey.model, grey.processor)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    grown = folder / "1.png"
    good = grown.read_bytes()
    with Image.open(grown) as image:
        for changed, words in (
            (image.resize((6, 6)), ("1.png", "5x5", "6x6")),
            (image.convert("RGB"), ("1.png", "num_channels=1", "RGB")),
            (image.point(lambda value: value // 2), ("1.png", "num_levels=3")),
        ):
            changed.save(grown)
            refused(*words)
    grown.write_bytes(good[:-30])
    refused("1.png", "truncated")
    grown.write_bytes(good)
    with Image.open(grown) as image:
        image.save(folder / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    refused("moving.gif", "more than one frame")
    (folder / "moving.gif").unlink()
    (folder / "1.bmp").write_bytes(good)
    refused("names", "got 1 more than once")
    (folder / "1.bmp").unlink()
    assert names(tmp_path) == before


def test_a_damaged_chunk_costs_its_images_only(grey, folder, tmp_path):
    compress_files(folder, tmp_path / "a.hlg", grey.model, grey.processor)
    content = bytearray((tmp_path / "a.hlg").read_bytes())
    info = read_info(bytes(content))
    content[info.start + int(info.entries["length"][0])] ^= 1
    (tmp_path / "a.hlg").write_bytes(content)
    (error,) = decompress_files(tmp_path / "a.hlg", tmp_path / "back", grey.model, grey.processor)
    assert "chunk 1 (images 16 to 25)" in str(error)
    lost = {info.names[index] for index in info.items(1)}
    assert {path for path in names(tmp_path / "back") if path.endswith(".png")} == set(info.names) - lost


def test_damaged_bytes_leave_nothing(text, tmp_path):
    (tmp_path / "play").write_bytes(text.data)
    compress_files(tmp_path / "play", tmp_path / "a.hlg", text.model, text.processor, verify=False)
    content = bytearray((tmp_path / "a.hlg").read_bytes())
    content[read_info(bytes(content)).start] ^= 1
    (tmp_path / "a.hlg").write_bytes(content)
    with pytest.raises(CompressedFileError, match="chunk 0"):
        decompress_files(tmp_path / "a.hlg", tmp_path / "back", text.model, text.processor)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png", "C:a.png", "..\\a.png", "", "a\0.png"])
def test_names_that_lead_out_of_the_folder_are_refused(grey, tmp_path, name, monkeypatch):
    with pytest.raises(ValueError, match="names must be those of files below a folder"):
        compress_to(tmp_path / "a.hlg", grey.model, grey.processor, grey.data[:1], names=[name])
    assert names(tmp_path) == []
    # As somebody might write one.
    monkeypatch.setattr("hf_latentgen.coding.compression.check_names", lambda _: None)
    compress_to(tmp_path / "a.hlg", grey.model, grey.processor, grey.data[:1], names=[name])
    with pytest.raises(CompressedFileError, match="names"):
        decompress_files(tmp_path / "a.hlg", tmp_path / "back", grey.model, grey.processor)
    assert names(tmp_path) == ["a.hlg"]


@pytest.mark.parametrize("given", [["a.png", "a.png"], ["a.png", "a.png/b.png"], ["a/b/c.png", "a"]])
def test_names_that_stand_in_each_others_way_are_refused(grey, tmp_path, given):
    with pytest.raises(ValueError, match="names must differ from each other, and from the folders of others, got 'a"):
        compress_to(tmp_path / "a.hlg", grey.model, grey.processor, grey.data[:2], names=given)
    assert names(tmp_path) == []


def test_places_that_cannot_be_written_are_named_before_anything_is_coded(grey, tmp_path, monkeypatch):
    data = (grey.model, grey.processor, grey.data[:2])
    compress_to(tmp_path / "a.hlg", *data)
    (tmp_path / "000001.png").mkdir()
    monkeypatch.setattr("hf_latentgen.coding.compression._write", None)
    monkeypatch.setattr("hf_latentgen.coding.files.decompress_from", None)
    with pytest.raises(IsADirectoryError, match="000001.png must be a file to write, got a folder"):
        compress_to(tmp_path / "000001.png", *data, overwrite=True)
    with pytest.raises(FileNotFoundError, match="missing must be a folder to write b.hlg into, found none"):
        compress_to(tmp_path / "missing" / "b.hlg", *data)
    with pytest.raises(NotADirectoryError, match="a.hlg must be a folder to write into, got a file"):
        decompress_files(tmp_path / "a.hlg", tmp_path / "a.hlg", *data[:2])
    with pytest.raises(IsADirectoryError, match="000001.png must be a file to write, got a folder"):
        decompress_files(tmp_path / "a.hlg", tmp_path, *data[:2], overwrite=True)
    assert names(tmp_path) == ["000001.png", "a.hlg"]


def test_a_compressed_file_may_be_read_by_whom_any_new_file_may(grey, tmp_path):
    compress_to(tmp_path / "a.hlg", grey.model, grey.processor, grey.data[:1])
    (tmp_path / "other").touch()
    assert (tmp_path / "a.hlg").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_existing_files_stay_unless_told_otherwise(grey, tmp_path):
    compress_to(tmp_path / "a.hlg", grey.model, grey.processor, grey.data[:2], names=["a.png", "b.png"])
    (tmp_path / "b.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b.png exists.*--force"):
        decompress_files(tmp_path / "a.hlg", tmp_path, grey.model, grey.processor)
    assert names(tmp_path) == ["a.hlg", "b.png"]
    decompress_files(tmp_path / "a.hlg", tmp_path, grey.model, grey.processor, overwrite=True)
    assert names(tmp_path) == ["a.hlg", "a.png", "b.png"]
    assert (tmp_path / "b.png").read_bytes() != b"mine"


@pytest.mark.parametrize("place", ["compress", "decompress"])
def test_a_full_disk_leaves_nothing(grey, folder, tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if place == "decompress":
        compress_files(folder, tmp_path / "a.hlg", grey.model, grey.processor)
    before = names(tmp_path)
    monkeypatch.setattr(Writer, "finish", full)
    monkeypatch.setattr(Image.Image, "save", full)
    if place == "compress":
        call = lambda: compress_files(folder, tmp_path / "a.hlg", grey.model, grey.processor)  # noqa: E731
    else:
        call = lambda: decompress_files(tmp_path / "a.hlg", tmp_path / "back", grey.model, grey.processor)  # noqa: E731
    with pytest.raises(OSError, match="No space left"):
        call()
    assert names(tmp_path) == before
