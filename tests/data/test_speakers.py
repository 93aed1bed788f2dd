import re

import pytest
from datasets import Dataset, IterableDataset

from hf_latentgen.data import load_text
from hf_latentgen.data.speakers import PIECE, rename_speakers, renamed_copies

SPEECHES = (
    ("ROMEO", "Is the day so young?"),
    ("BENVOLIO", "But new struck nine, Romeo."),
    ("KING RICHARD", "Who calls ROMEO, Romeos and aROMEO?"),
    ("First Servant", "Benvolio's man\nand Romeo's."),
)
PLAY = "A play" + "".join(f"\n\n{speaker}:\n{speech}" for speaker, speech in SPEECHES * 10)


def names(text):
    return re.findall(r"(?<=\n\n).*(?=:\n)", text)


def test_a_speaker_has_one_new_name_in_a_piece():
    renamed = rename_speakers(PLAY, 3, share=1.0)
    romeo, benvolio, king, servant = names(renamed)[:4]
    assert (king, servant) == ("KING RICHARD", "First Servant")
    assert {romeo, benvolio}.isdisjoint({"ROMEO", "BENVOLIO"})
    # The same speeches, with these names for those.
    expected = PLAY.replace("aROMEO", "a-").replace("Romeos", "r-")
    for old, new in (("ROMEO", romeo), ("BENVOLIO", benvolio)):
        expected = expected.replace(old, new).replace(old.title(), new.title())
    assert renamed == expected.replace("a-", "aROMEO").replace("r-", "Romeos")


def test_new_names_begin_and_end_as_names_of_the_text():
    for seed in range(20):
        for name in {*names(rename_speakers(PLAY, seed, share=1.0))} - {"KING RICHARD", "First Servant"}:
            assert any(name.startswith(old[:2]) for old in ("ROMEO", "BENVOLIO"))
            assert any(name.endswith(old[-2:]) for old in ("ROMEO", "BENVOLIO"))


def test_the_same_seed_gives_the_same_names():
    found = [rename_speakers(PLAY, seed) for seed in (1, 1, 2, 3, 4, 5)]
    assert found[0] == found[1]
    assert len(set(found)) > 2


@pytest.mark.parametrize(
    "text", ["", "no speakers", "\n\nKING RICHARD:\nI\n\nFirst Servant:\nyou", "ROMEO:\nfirst line"]
)
def test_a_text_without_speakers_stays(text):
    assert rename_speakers(text, 0, share=1.0) == text


def test_a_share_of_the_pieces_gets_new_names():
    text = PLAY * (100 * PIECE // len(PLAY))
    assert rename_speakers(text, 0, share=0.0) == text
    kept = [re.findall(r"(?<=\n\n)ROMEO(?=:\n)", rename_speakers(text, 0, share)) for share in (0.2, 0.8)]
    shares = [len(found) / text.count("\n\nROMEO:\n") for found in kept]
    assert shares == pytest.approx([0.8, 0.2], abs=0.12)
    # Between pieces nothing is lost.
    assert len(names(rename_speakers(text, 0))) == len(names(text))


def test_copies_differ_and_keep_what_is_no_name():
    plain = "caf\u00e9 \udcff"
    dataset = Dataset.from_dict({"text": [PLAY, "caf\u00e9"]})
    copies = renamed_copies(dataset, 3)["text"]
    assert len(copies) == 6
    assert len({*copies[::2]}) == 3
    assert {*copies[1::2]} == {"caf\u00e9"}
    assert renamed_copies(dataset, 3)["text"] == copies
    assert renamed_copies(dataset, 3, seed=1)["text"] != copies
    assert rename_speakers(plain, 0) == plain


def test_a_text_that_is_no_utf8_keeps_its_bytes(tmp_path):
    path = tmp_path / "play.txt"
    path.write_bytes(b"\xff\xfe" + PLAY.encode() * 3)
    dataset = load_text(path, "train")
    assert all(text.startswith("\udcff\udcfe") for text in renamed_copies(dataset, 2)["text"])


def test_line_ends_of_windows_change_nothing():
    windows = PLAY.replace("\n", "\r\n") * 30
    for seed in range(5):
        assert rename_speakers(windows, seed, share=1.0) != windows
    copies = renamed_copies(Dataset.from_dict({"text": [windows]}), 26)["text"]
    assert len(set(copies)) == 26
    # Only names differ: every line stays, and ends as it did.
    assert {copy.count("\r\n") for copy in copies} == {copy.count("\n") for copy in copies} == {windows.count("\r\n")}
    assert any(name not in ("ROMEO", "BENVOLIO") for name in re.findall(r"(?<=\n\r\n)[A-Z]+(?=:\r\n)", copies[0]))


@pytest.mark.parametrize("text", ["no speakers", "KING RICHARD:\nI", ""])
def test_a_text_without_speakers_has_no_copies(text):
    dataset = Dataset.from_dict({"text": [text, text]})
    assert renamed_copies(dataset, 1)["text"] == [text, text]
    with pytest.raises(ValueError, match="renamed_copies needs headings .*, found none"):
        renamed_copies(dataset, 26)


@pytest.mark.parametrize("num_copies", [0, -1, 2.0, True, "3", None])
def test_the_number_of_copies_must_be_an_integer_of_at_least_one(num_copies):
    with pytest.raises(ValueError, match=f"renamed_copies must be an integer of at least 1, got {num_copies!r}"):
        renamed_copies(Dataset.from_dict({"text": [PLAY]}), num_copies)


def test_a_stream_has_no_copies():
    stream = IterableDataset.from_generator(lambda: iter([{"text": PLAY}]))
    with pytest.raises(ValueError, match="renamed_copies needs a data set in memory, got a stream"):
        renamed_copies(stream, 2)
