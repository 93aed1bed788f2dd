"""Truncated, corrupt and ambiguous files: each is named, with what was expected and what was found."""

import gzip

import numpy as np
import pytest

from data_common import idx_bytes, write_amat, write_idx
from hf_latentgen.data.images import (
    load_images,
    read_amat,
    read_idx,
)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("change", "found"), [(lambda content: content[:-7], 609), (lambda content: content + b"\0", 617)]
)
def test_idx_of_wrong_length_says_expected_and_found_bytes(tmp_path, random_images, compress, change, found):
    content = change(idx_bytes(random_images[:20]))
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * compress)
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(ValueError, match=f"{path} is truncated or corrupt: expected 616 bytes, found {found}"):
        read_idx(path, 3)


def test_cut_gzip_file_says_expected_and_found_bytes(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:], compress=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    message = r"t10k-images-idx3-ubyte.gz is truncated or corrupt: expected 616 bytes, found \d+"
    with pytest.raises(ValueError, match=message):
        load_images("mnist", "test", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"no gzip", b"\x1f\x8b\x08\x00broken stream of bytes"])
def test_corrupt_gzip_file_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is corrupt: its {len(content)} bytes are no gzip stream"):
        read_idx(path, 3)


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path, random_images):
    content = idx_bytes(random_images)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content[:300]) + gzip.compress(content[300:]) + b"\0" * 8)
    assert np.array_equal(read_idx(path, 3), random_images)
    path.write_bytes(gzip.compress(content) + b"no gzip")
    with pytest.raises(ValueError, match="is corrupt: .* no gzip stream"):
        read_idx(path, 3)


def test_flipped_bit_in_a_gzip_file_is_noticed(tmp_path, random_images):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.compress(idx_bytes(random_images), compresslevel=0))
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is corrupt"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"\x89PNG and so on, long enough", idx_bytes(np.zeros((3, 20)))]
)
def test_what_is_no_idx_file_says_so(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    message = f"expected a header of 16 bytes that starts with '00 00 08 03', found {len(content)} bytes"
    with pytest.raises(ValueError, match=message):
        read_idx(path, 3)


def test_images_and_labels_must_be_as_many(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19)))
    with pytest.raises(ValueError, match="one label per image: expected 20, found 19"):
        load_images(tmp_path, "test")


def test_files_without_an_image_for_the_split_are_refused(tmp_path, random_images):
    write_idx(tmp_path, random_images[:9], random_images[:0])
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=f"must hold at least one image for split '{split}', found none"):
            load_images(tmp_path, split)


def test_idx_header_with_absurd_sizes_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(ValueError, match=f"expected {16 + (2**32 - 1) ** 3} bytes, found 16"):
        read_idx(path, 3)


def test_labels_must_not_be_missing(tmp_path, random_images):
    write_idx(tmp_path, random_images[:40], random_images[40:])
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\[.gz\] and train-labels-idx1-ubyte\[.gz\]"):
        load_images(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "truncated or corrupt"),
        (b"\n\n", "truncated or corrupt"),
        (b"0 1 0\n1 1 1\n", "expected 2 lines of 3 values, a square number, found 6 values"),
        (b"0 1 0 1\n1 1 1\n", "expected 2 lines of 4 values, a square number, found 7 values"),
        (b"0 1 0 1\n1 1", "found 6 values"),
        (b"0 1 2 1\n", "values 0 and 1"),
        (b"0 1 10 1\n", "values 0 and 1"),
        (b"0.0 1.0 1.0 1.0\n", "values 0 and 1"),
    ],
)
def test_bad_amat_files_are_refused(tmp_path, text, message):
    path = tmp_path / "x_train.amat"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_amat(path)


def test_cut_amat_archive_is_refused_even_at_a_line_end(tmp_path):
    path = tmp_path / "x_train.amat.gz"
    path.write_bytes(gzip.compress(b"0 1 0 1\n" * 3)[:-8])
    with pytest.raises(ValueError, match="is truncated: its gzip stream stops after 24 bytes"):
        read_amat(path)


def test_last_line_may_lack_its_line_end(tmp_path):
    path = tmp_path / "x_train.amat"
    path.write_bytes(b"0 1 0 1\r\n1 1 0 0")
    assert read_amat(path).tolist() == [[[0, 255], [0, 255]], [[255, 255], [0, 0]]]


def test_two_matching_files_are_refused(tmp_path):
    for stem in ("a", "b"):
        write_amat(tmp_path, {"train": np.zeros((4, 2, 2), int)}, stem=stem)
    with pytest.raises(ValueError, match=r"must hold one \*_train.amat\[.gz\], got .*_train.amat, .*_train.amat"):
        load_images(tmp_path)
