import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, Value
from datasets.packaged_modules.parquet.parquet import Parquet
from torch.utils.data import DataLoader
from transformers import MistralConfig, MistralForCausalLM
from transformers.masking_utils import find_packed_sequence_indices

from hf_latentgen.data import TokenBlocksDataset, collate_levels, load_text, stream_token_blocks
from hf_latentgen.models.tokenization_bytes import ByteTokenizer, bytes_from_text

BOS, EOS, PAD = 257, 258, 256
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path, monkeypatch):
    """No data folder of the machine, and a cache of the test's own."""
    monkeypatch.delenv("HF_LATENTGEN_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def documents(dataset) -> list[bytes]:
    return [bytes_from_text(example["text"]) for example in dataset]


def load_splits(source, **options) -> dict[str, list[bytes]]:
    return {split: documents(load_text(source, split, **options)) for split in SPLITS}


def texts_dataset(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))


def packed_reference(contents: list[bytes], block_size: int) -> list[dict[str, list[int]]]:
    """Blocks with their positions and labels, one id after the other."""
    line = [(index, number) for content in contents for number, index in enumerate([BOS, *content, EOS])]
    blocks = []
    while not blocks or len(line) > 1:
        block = line[:block_size] + [(PAD, 0)] * (block_size - len(line))
        # Where the document that is cut by the block begins counts as 0.
        offset, positions = block[0][1], []
        for _, number in block:
            offset = 0 if number == 0 else offset
            positions.append(number - offset)
        ids = [index for index, _ in block]
        labels = [-100 if position == 0 else index for index, position in zip(ids, positions, strict=True)]
        blocks.append({"input_ids": ids, "position_ids": positions, "labels": labels})
        line = line[block_size - 1 :]
    return blocks


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_is_cut_by_bytes(tmp_path, streaming):
    content = np.random.default_rng(0).integers(32, 127, 1013).astype(np.uint8).tobytes()
    path = write(tmp_path, {"a.txt": content}) / "a.txt"
    found = load_splits(path, streaming=streaming)
    assert found == {"train": [content[:911]], "validation": [content[911:962]], "test": [content[962:]]}
    assert load_splits(str(path)) == found


def test_a_text_is_an_ordinary_data_set(tmp_path):
    path = write(tmp_path, {"a.txt": "é\r\n".encode() * 100}) / "a.txt"
    dataset = load_text(path, "validation")
    assert isinstance(dataset, Dataset)
    assert dataset.features == Features({"text": Value("large_string")})
    assert str(dataset.split) == "validation"
    assert dataset["text"][:] == ["é\r\n" * 5]
    stream = load_text(path, "validation", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert (stream.column_names, list(stream)) == (["text"], list(dataset))


@pytest.mark.parametrize("character", ["é", "世", "🙂"])
@pytest.mark.parametrize("offset", range(8))
def test_no_cut_goes_through_a_character(tmp_path, character, offset):
    text = "x" * offset + character * 100
    found = load_splits(write(tmp_path, {"a.txt": text.encode()}) / "a.txt")
    parts = [found[split][0].decode() for split in SPLITS]
    assert "".join(parts) == text
    size = len(text.encode())
    cuts = (len(found["train"][0]), len(found["train"][0] + found["validation"][0]))
    for cut, percent in zip(cuts, (90, 95), strict=True):
        assert 0 <= size * percent // 100 - cut <= 3


@pytest.mark.parametrize("streaming", [False, True])
def test_a_binary_file_is_kept_exactly(tmp_path, streaming):
    content = np.random.default_rng(0).bytes(5000) + b"\x80" * 500
    path = write(tmp_path, {"weights.bin": content}) / "weights.bin"
    found = load_splits(path, streaming=streaming)
    assert b"".join(found[split][0] for split in SPLITS) == content
    assert abs(len(found["train"][0]) - 4950) <= 3


def test_binary_documents_are_texts_however_they_are_read(tmp_path):
    folder = write(tmp_path / "files", {"train/a": b"a\xff", "train/b": b"b", "validation/a": b"", "test/a": b""})
    dataset = load_text(folder, "train")
    assert dataset.features == Features({"text": Value("large_binary")})
    expected = ["a\udcff", "b"]
    assert dataset["text"][:] == [dataset[0]["text"], dataset[1]["text"]] == expected
    assert dataset.select([1, 0])["text"][:] == expected[::-1]
    tokenizer = ByteTokenizer()
    encoded = dataset.map(lambda batch: tokenizer(batch["text"]), batched=True)
    assert encoded["input_ids"][:] == [[BOS, 97, 255], [BOS, 98]]
    assert encoded["text"][:] == expected
    assert encoded.remove_columns("text")[0]["input_ids"] == [BOS, 97, 255]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_cut_by_documents_in_the_order_of_paths(tmp_path, streaming):
    files = {f"{'ab'[index % 2]}/{index:02d}.txt": f"document {index}".encode() for index in range(40)}
    hidden = {".git/config": b"no", "a/.hidden": b"no", "a/empty.txt": b""}
    folder = write(tmp_path, {**files, **hidden})
    ordered = [files[name] for name in sorted(files)]
    found = load_splits(folder, streaming=streaming)
    assert found == {"train": ordered[:36], "validation": ordered[36:38], "test": ordered[38:]}


def test_a_folder_with_one_file_is_that_file(tmp_path):
    path = write(tmp_path, {"a.txt": bytes(range(1, 101))}) / "a.txt"
    assert load_splits(tmp_path) == load_splits(path)


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_a_folder_with_splits_keeps_them(tmp_path, name):
    files = {"train/b.txt": b"2", "train/a/c.txt": b"1", f"{name}.txt": b"3", "test/a": b"4", "README.md": b"no"}
    found = load_splits(write(tmp_path, files))
    assert found == {"train": [b"1", b"2"], "validation": [b"3"], "test": [b"4"]}


def test_missing_splits_are_cut_from_the_end_of_train(tmp_path):
    content = bytes(range(100))
    with_test = write(tmp_path / "1", {"train.txt": content, "test.txt": b"test"})
    assert load_splits(with_test) == {"train": [content[:95]], "validation": [content[95:]], "test": [b"test"]}
    with_validation = write(tmp_path / "2", {"train.txt": content, "validation.txt": b"v"})
    assert load_splits(with_validation) == {"train": [content[:95]], "validation": [b"v"], "test": [content[95:]]}
    only_train = write(tmp_path / "3", {f"train/{index:02d}": bytes([index + 1]) for index in range(20)})
    assert [len(load_text(only_train, split)) for split in SPLITS] == [18, 1, 1]


def test_tinyshakespeare_is_found_in_its_folder(tmp_path, monkeypatch):
    write(tmp_path, {"tinyshakespeare/input.txt": b"x" * 90 + b"y" * 5 + b"z" * 5})
    expected = {"train": [b"x" * 90], "validation": [b"y" * 5], "test": [b"z" * 5]}
    assert load_splits("tinyshakespeare", data_dir=tmp_path) == expected
    monkeypatch.setenv("HF_LATENTGEN_DATA", str(tmp_path))
    assert load_splits("tinyshakespeare", streaming=True) == expected


def test_the_real_tinyshakespeare(data_root):
    path = data_root / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"{data_root} holds no tinyshakespeare/input.txt")
    found = load_splits("tinyshakespeare", data_dir=data_root)
    assert [len(found[split][0]) for split in SPLITS] == [1003854, 55770, 55770]
    assert b"".join(found[split][0] for split in SPLITS) == path.read_bytes()


def cache_on_hub(tmp_path, columns: dict[str, list], split: str = "train") -> None:
    """A copy of the Hub data set someone/texts, with one split, in the local cache."""
    files = tmp_path / "parquet"
    files.mkdir()
    Dataset.from_dict(columns).to_parquet(files / "data.parquet")
    builder = Parquet(dataset_name="texts", data_files={split: str(files / "*.parquet")}, hash="0")
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, tmp_path / "cache" / "someone___texts" / builder.config.name / "0.0.0" / "0")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["text", "content"])
def test_a_hub_data_set_is_cut_by_rows(tmp_path, streaming, column):
    rows = [f"row {index}" for index in range(41)]
    cache_on_hub(tmp_path, {"number": list(range(41)), column: rows})
    found = load_splits("someone/texts", streaming=streaming)
    expected = [row.encode() for row in rows]
    assert found == {"train": expected[:36], "validation": expected[36:38], "test": expected[38:]}


def test_a_hub_data_set_without_one_column_of_text_is_refused(tmp_path):
    cache_on_hub(tmp_path, {"question": ["a"], "answer": ["b"]})
    with pytest.raises(ValueError, match=r"someone/texts must have a column 'text' or one .*, got \['question', 'ans"):
        load_text("someone/texts")


def test_a_hub_data_set_without_train_names_its_splits(tmp_path):
    cache_on_hub(tmp_path, {"text": ["a", "b"]}, split="test")
    assert documents(load_text("someone/texts", "test")) == [b"a", b"b"]
    with pytest.raises(ValueError, match="split must be one of test for someone/texts, got 'validation'"):
        load_text("someone/texts", "validation")


def test_without_network_the_error_says_what_was_looked_for():
    with pytest.raises(FileNotFoundError, match="someone/texts was looked for as a file or folder; .* cannot be reach"):
        load_text("someone/texts")


def test_unknown_split_names_the_allowed_ones():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        load_text("tinyshakespeare", "dev")


@pytest.mark.parametrize("name", ["shakespeare", "./missing.txt", "/missing/file", "a/b/c.txt", ""])
def test_unknown_name_says_what_is_allowed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="name_or_path must be tinyshakespeare, an existing file or folder or a Hub id"
    ):
        load_text(name)


def test_missing_tinyshakespeare_says_what_was_looked_for_where(tmp_path):
    with pytest.raises(FileNotFoundError, match="tinyshakespeare was looked for as input.txt in no folder, as neither"):
        load_text("tinyshakespeare")
    with pytest.raises(FileNotFoundError, match=rf"looked for as input.txt in {tmp_path}/tinyshakespeare\."):
        load_text("tinyshakespeare", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_dir .* must be an existing folder, got .*nowhere"):
        load_text("tinyshakespeare", data_dir=tmp_path / "nowhere")


def test_empty_texts_are_refused(tmp_path):
    write(tmp_path, {"empty.txt": b"", "folder/empty.txt": b"", "tiny.txt": b"ab"})
    with pytest.raises(ValueError, match=r"empty.txt must hold text, got an empty file"):
        load_text(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="folder must hold at least one file that is not empty, found none"):
        load_text(tmp_path / "folder")
    with pytest.raises(ValueError, match="tiny.txt is too small .* of its 2 bytes none are left for 'validation'"):
        load_text(tmp_path / "tiny.txt", "validation")


def test_too_few_documents_are_refused(tmp_path):
    folder = write(tmp_path, {f"{index}.txt": b"text" for index in range(3)})
    with pytest.raises(ValueError, match="too small .* of its 3 documents none are left for 'validation'"):
        load_text(folder, "validation")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    folder = write(tmp_path, {"a.txt": b"text", "b.txt": b"text"})
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for source in (folder, folder / "a.txt"):
        with pytest.raises(PermissionError, match=r"name_or_path must name readable files, got .*a.txt: Permission"):
            load_text(source)


CONTENTS = {
    "one": [b"hello world"],
    "several": [b"abc", b"", b"defghij", b"\xff\x00", b"k"],
    "shorter than a block": [b"a"],
    "exactly two blocks": [b"abcdefg"],
    "many": [bytes([65 + index]) * (index % 7) for index in range(60)],
}


@pytest.mark.parametrize("block_size", [2, 3, 5, 16])
@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
def test_blocks_equal_the_reference(contents, block_size):
    dataset = IterableDataset.from_generator(
        lambda: ({"text": content.decode("utf-8", "surrogateescape")} for content in contents),
        features=Features({"text": Value("string")}),
    )
    blocks = TokenBlocksDataset(dataset, block_size)
    expected = packed_reference(contents, block_size)
    assert len(blocks) == len(expected)
    assert [
        {name: values.tolist() for name, values in blocks[index].items()} for index in range(len(blocks))
    ] == expected
    streamed = [
        {name: values.tolist() for name, values in row.items()} for row in stream_token_blocks(dataset, block_size)
    ]
    assert streamed == expected


@pytest.mark.parametrize("block_size", [2, 7, 100])
def test_every_byte_is_predicted_exactly_once(block_size):
    texts = ["abc", "", "defghij", "é"]
    blocks = TokenBlocksDataset(texts_dataset(texts), block_size)
    labels = blocks.gather(list(range(len(blocks))))["labels"]
    # As the shift of a causal loss sees them.
    scored = labels[:, 1:][labels[:, 1:] != -100].tolist()
    expected = [index for text in texts for index in (*text.encode(), EOS)]
    assert scored == expected


def test_a_batch_is_gathered_at_once():
    blocks = TokenBlocksDataset(texts_dataset([f"document {index}" for index in range(50)]), 16)
    assert blocks.input_ids.dtype == torch.int16
    rows = [3, 0, 7, 3]
    batch = collate_levels(blocks.__getitems__(rows))
    for name, values in batch.items():
        assert (values.dtype, values.shape) == (torch.int64, (4, 16))
        assert (values == torch.stack([blocks[row][name] for row in rows])).all()
    loader = DataLoader(blocks, batch_size=8, shuffle=True, collate_fn=collate_levels)
    assert sum(len(batch["input_ids"]) for batch in loader) == len(blocks)


def test_ids_are_those_of_the_tokenizer():
    text, tokenizer = "Grüße, 世界 <eos>", ByteTokenizer()
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    block = TokenBlocksDataset(texts_dataset([text]), len(ids) + 2)[0]
    assert block["input_ids"].tolist() == [*ids, tokenizer.pad_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(block["input_ids"], skip_special_tokens=True) == text


def test_transformers_sees_the_documents_of_a_block():
    blocks = TokenBlocksDataset(texts_dataset(["ab", "", "cdefg", "h"]), 18)
    positions = blocks[0]["position_ids"]
    assert positions.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 0]
    found = find_packed_sequence_indices(positions[None])
    assert found.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 5]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_sees_each_document_as_if_it_were_alone(attention):
    config = MistralConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        attn_implementation=attention,
    )
    model = MistralForCausalLM(config).eval()
    contents = ["hello", "a", "", "some more text"]
    batch = TokenBlocksDataset(texts_dataset(contents), 64).gather([0])
    output = model(**batch, use_cache=False)
    start, nats, count = 0, 0.0, 0
    for content in contents:
        ids = torch.tensor([[BOS, *content.encode(), EOS]])
        alone = model(input_ids=ids, labels=ids)
        length = ids.shape[1]
        torch.testing.assert_close(output.logits[:, start : start + length], alone.logits, atol=1e-5, rtol=0)
        start, nats, count = start + length, nats + alone.loss * (length - 1), count + length - 1
    torch.testing.assert_close(output.loss, nats / count)


def test_a_stream_of_blocks_can_be_batched(tmp_path):
    folder = write(tmp_path, {f"train/{index}.txt": b"some text" * index for index in range(1, 9)})
    stream = stream_token_blocks(load_text(folder, "train", streaming=True), 16)
    batches = list(DataLoader(stream, batch_size=4, collate_fn=collate_levels))
    assert all(batch["input_ids"].shape[1:] == (16,) for batch in batches)
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert (ids == TokenBlocksDataset(load_text(folder, "train"), 16).input_ids).all()


@pytest.mark.parametrize("block_size", [1, 0, 2.0, True, None])
def test_block_size_must_be_an_integer_of_at_least_two(block_size):
    with pytest.raises(ValueError, match=f"block_size must be an integer of at least 2, got {block_size}"):
        TokenBlocksDataset(texts_dataset(["a"]), block_size)


def test_a_data_set_without_texts_is_refused():
    with pytest.raises(ValueError, match="dataset must hold at least one document, got an empty data set"):
        TokenBlocksDataset(texts_dataset([]), 8)
    for make in (TokenBlocksDataset, stream_token_blocks):
        with pytest.raises(ValueError, match="dataset must have a column 'text', got label, line"):
            make(Dataset.from_dict({"label": [0], "line": ["a"]}), 8)


def test_links_to_files_and_folders_are_followed_without_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("b")
    root = tmp_path / "root"
    (root / "train").mkdir(parents=True)
    (root / "train" / "a.txt").write_text("a")
    (root / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "round").symlink_to(root)
    (root / "test").symlink_to(tmp_path / "elsewhere")
    (root / "validation").symlink_to(tmp_path / "elsewhere")
    assert load_text(root, "train")["text"][:] == ["a", "b"]
    assert load_text(root, "test")["text"][:] == ["b"]


def test_splits_are_named_in_any_case(tmp_path):
    for name in ("Train.txt", "VAL.txt", "Test.txt"):
        (tmp_path / name).write_text(name)
    for split, name in (("train", "Train.txt"), ("validation", "VAL.txt"), ("test", "Test.txt")):
        assert load_text(tmp_path, split)["text"][:] == [name]
