import json
import random
import time

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES, TOKENIZER_MAPPING

from hf_latentgen.models.tokenization_bytes import BYTE_TOKENS, ByteTokenizer, bytes_from_text


@pytest.fixture(scope="module")
def tokenizer():
    return ByteTokenizer()


def as_text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


CONTENTS = {
    "empty": b"",
    "every byte": bytes(range(256)),
    "utf-8": "Grüße, 世界 🙂\r\n\t\0".encode(),
    "cut utf-8": "é世🙂".encode()[:-1],
    "encoded surrogates": b"\xed\xa0\x80\xed\xb2\x80",
    "overlong": b"\xc0\xaf\xf8\x88\x80\x80\x80",
    "special names": b"<pad><bos><eos> <0x0A>",
    "byte order mark": b"\xef\xbb\xbftext",
    "spaces": b"  a , b .  \n n't ",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_any_bytes_come_back_exactly(tokenizer, content):
    ids = tokenizer.encode(as_text(content))
    assert ids == [257, *content]
    assert bytes_from_text(tokenizer.decode(ids, skip_special_tokens=True)) == content
    assert tokenizer.encode(as_text(content), add_special_tokens=False) == list(content)
    assert bytes_from_text(tokenizer.decode(list(content))) == content
    assert bytes_from_text(tokenizer.convert_tokens_to_string(tokenizer.tokenize(as_text(content)))) == content


def test_random_bytes_come_back_exactly(tokenizer):
    for length in range(300):
        content = random.randbytes(length)
        assert bytes_from_text(tokenizer.decode(tokenizer.encode(as_text(content))[1:])) == content


def test_the_vocabulary_is_the_bytes_and_three_special_tokens(tokenizer):
    assert (tokenizer.vocab_size, len(tokenizer)) == (259, 259)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257, 258)
    assert sorted(tokenizer.all_special_ids) == [256, 257, 258]
    assert sorted(tokenizer.get_vocab().values()) == list(range(259))
    tokens = tokenizer.convert_ids_to_tokens(list(range(259)))
    assert tokens[:256] == BYTE_TOKENS
    assert tokens[256:] == ["<pad>", "<bos>", "<eos>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(259))
    assert [tokenizer.convert_tokens_to_ids(token) for token in tokens] == list(range(259))


def test_tokens_are_readable_and_no_token_is_part_of_another_character(tokenizer):
    assert tokenizer.tokenize("Hé\n") == ["H", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert tokenizer.convert_tokens_to_ids(["é", "A", "AB"]) == [None, 65, None]
    assert tokenizer.convert_tokens_to_ids("é") is None


def test_special_tokens_in_a_text_are_text_unless_asked(tokenizer):
    text = "a<eos>b"
    assert tokenizer(text)["input_ids"] == [257, *text.encode()]
    assert tokenizer(text, split_special_tokens=False)["input_ids"] == [257, 97, 258, 98]
    asked = ByteTokenizer(split_special_tokens=False)
    assert asked(text)["input_ids"] == [257, 97, 258, 98]
    assert asked(text, split_special_tokens=True)["input_ids"] == [257, *text.encode()]
    assert asked.tokenize("é <pad>") == ["<0xC3>", "<0xA9>", "<0x20>", "<pad>"]


def test_decoding_names_special_tokens_or_leaves_them_out(tokenizer):
    ids = [256, 257, 0xC3, 0xA9, 258]
    assert tokenizer.decode(ids) == "<pad><bos>é<eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "é"
    # The pieces of a character find each other again.
    assert tokenizer.decode([0xC3, 256, 0xA9], skip_special_tokens=True) == "é"
    assert tokenizer.decode([0xC3, 256, 0xA9]) == "\udcc3<pad>\udca9"


def test_decoding_takes_whatever_holds_ids(tokenizer):
    ids = [72, 105]
    assert [tokenizer.decode(kind(ids)) for kind in (list, tuple, np.array, torch.tensor)] == ["Hi"] * 4
    assert (tokenizer.decode(72), tokenizer.decode([])) == ("H", "")
    assert tokenizer.decode(torch.tensor([ids, ids])) == ["Hi", "Hi"]
    assert tokenizer.batch_decode([ids, [256, 72]], skip_special_tokens=True) == ["Hi", "H"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_on_either_side(tokenizer, side):
    batch = tokenizer(["a", "bcd", ""], padding=True, padding_side=side, return_tensors="pt")
    rows = [[257, 97], [257, 98, 99, 100], [257]]
    padding = [[256] * (4 - len(row)) for row in rows]
    expected = [pad + row if side == "left" else row + pad for row, pad in zip(rows, padding, strict=True)]
    assert batch["input_ids"].tolist() == expected
    assert batch["attention_mask"].tolist() == [[int(index != 256) for index in row] for row in expected]
    assert batch["input_ids"].dtype == torch.int64
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["a", "bcd", ""]


def test_left_is_the_side_of_padding_unless_said_otherwise(tokenizer):
    assert tokenizer(["a", "bc"], padding=True)["input_ids"][0] == [256, 257, 97]
    assert ByteTokenizer(padding_side="right")(["a", "bc"], padding=True)["input_ids"][0] == [257, 97, 256]
    multiple = tokenizer("abc", padding=True, pad_to_multiple_of=8)
    assert (len(multiple["input_ids"]), sum(multiple["attention_mask"])) == (8, 4)


@pytest.mark.parametrize(("side", "expected"), [("right", [257, 97, 98]), ("left", [257, 99, 100])])
def test_truncation_keeps_the_beginning_token(side, expected):
    tokenizer = ByteTokenizer(truncation_side=side)
    assert tokenizer("abcd", truncation=True, max_length=3)["input_ids"] == expected
    assert ByteTokenizer(truncation_side=side, model_max_length=3)("abcd", truncation=True)["input_ids"] == expected


def test_the_mask_of_special_tokens(tokenizer):
    assert tokenizer("ab", return_special_tokens_mask=True)["special_tokens_mask"] == [1, 0, 0]
    assert tokenizer.get_special_tokens_mask([256, 257, 65, 258], already_has_special_tokens=True) == [1, 1, 0, 1]
    assert tokenizer("a", "b")["input_ids"] == [257, 97, 257, 98]
    assert tokenizer(["ab", "c"], is_split_into_words=True)["input_ids"] == [257, 97, 98, 99]


def test_a_saved_tokenizer_is_the_same(tmp_path):
    original = ByteTokenizer(
        eos_token="<|end|>", split_special_tokens=False, errors="replace", padding_side="right", model_max_length=77
    )
    original.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer_config.json"]
    loaded = ByteTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == original.get_vocab()
    assert (loaded.eos_token, loaded.eos_token_id, len(loaded)) == ("<|end|>", 258, 259)
    assert (loaded.padding_side, loaded.model_max_length, loaded.errors) == ("right", 77, "replace")
    assert loaded("a<|end|>")["input_ids"] == [257, 97, 258]
    loaded.save_pretrained(tmp_path / "again")
    configs = [json.loads((path / "tokenizer_config.json").read_text()) for path in (tmp_path, tmp_path / "again")]
    for config in configs:
        # Where and how it was loaded from.
        for key in ("is_local", "local_files_only"):
            config.pop(key, None)
    assert configs[0] == configs[1]


def test_tokens_can_be_added(tmp_path):
    tokenizer = ByteTokenizer(split_special_tokens=False)
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<user>"]}) == 1
    tokenizer.save_pretrained(tmp_path)
    for instance in (tokenizer, ByteTokenizer.from_pretrained(tmp_path)):
        assert len(instance) == 260
        assert instance.encode("<user>é") == [257, 259, 0xC3, 0xA9]
        assert instance.decode([259, 0xC3, 0xA9]) == "<user>é"


def test_auto_tokenizer_loads_it(tmp_path, monkeypatch):
    class ByteConfig(PreTrainedConfig):
        model_type = "bytes_of_a_test"

    monkeypatch.setattr(TOKENIZER_MAPPING, "_extra_content", dict(TOKENIZER_MAPPING._extra_content))
    monkeypatch.setitem(REGISTERED_TOKENIZER_CLASSES, "ByteTokenizer", ByteTokenizer)
    AutoTokenizer.register(ByteConfig, tokenizer_class=ByteTokenizer, exist_ok=True)
    ByteTokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is ByteTokenizer
    assert tokenizer.decode(tokenizer.encode("é"), skip_special_tokens=True) == "é"


def test_megabytes_are_fast(tokenizer):
    text = as_text(np.random.default_rng(0).bytes(1_000_000))
    started = time.perf_counter()
    ids = tokenizer.encode(text)
    encoded = time.perf_counter()
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    # About 0.1 seconds each; a Python loop over bytes takes several.
    assert encoded - started < 1
    assert time.perf_counter() - encoded < 1
    assert bytes_from_text(decoded) == bytes_from_text(text)


def test_replaced_errors_can_be_printed():
    tokenizer = ByteTokenizer(errors="replace")
    assert tokenizer.decode([72, 0xFF, 105]) == "H\N{REPLACEMENT CHARACTER}i"


@pytest.mark.parametrize("ids", [[259], [65, -1], [-100], 1000])
def test_ids_out_of_range_are_refused(tokenizer, ids):
    wrong = ids if isinstance(ids, int) else ids[-1]
    for convert in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(ValueError, match=rf"ids must lie in 0 ... 258, got {wrong}\."):
            convert(ids)


def test_text_that_stands_for_no_bytes_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"text must be valid Unicode, .* got the lone surrogate U\+D800 at"):
        tokenizer("a\ud800")
    with pytest.raises(ValueError, match="Input must be a string"):
        tokenizer(b"bytes")


def test_unknown_error_handling_is_refused():
    with pytest.raises(ValueError, match="errors must be surrogateescape or replace, got 'ignore'"):
        ByteTokenizer(errors="ignore")


@pytest.mark.parametrize("names", [{"pad_token": "A"}, {"pad_token": "<x>", "bos_token": "<x>"}])
def test_special_tokens_have_names_of_their_own(names):
    with pytest.raises(
        ValueError, match="pad_token, bos_token and eos_token must be three names that no byte has, got"
    ):
        ByteTokenizer(**names)
