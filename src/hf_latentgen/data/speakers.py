"""Copies of a play in which the speakers have other names, so that a model learns to read names, not to know them."""

import random
import re

from datasets import Dataset, IterableDataset

from hf_latentgen.data.text import dataset_from_documents
from hf_latentgen.models.tokenization_bytes import bytes_from_text

# A heading of one word, as in "\n\nROMEO:\n", not one of several, such as "KING RICHARD III". Lines end as in either
# system.
HEADING = re.compile(r"(?:(?<=\n\n)|(?<=\n\r\n))[A-Z]{3,}(?=:\r?\n)")
EMPTY_LINE = re.compile(r"\n(?=\r?\n)")
# Characters of a piece within which a speaker keeps the new name: about the length of a scene.
PIECE = 12_000
# Of the pieces, how many get new names; the others teach the names of the text.
SHARE = 0.8


def renamed_copies(dataset: Dataset | IterableDataset, num_copies: int, seed: int = 0) -> Dataset:
    """Each document of a column `text` `num_copies` times, with other names in each copy, see [`rename_speakers`].

    Raises: ValueError when `num_copies` is no integer of at least 1, the data set is a stream, or no document has a
        speaker and there are several copies, which would all be equal.
    """
    if isinstance(num_copies, bool) or not isinstance(num_copies, int) or num_copies < 1:
        raise ValueError(f"renamed_copies must be an integer of at least 1, got {num_copies!r}.")
    if not isinstance(dataset, Dataset):
        raise ValueError("renamed_copies needs a data set in memory, got a stream.")
    if num_copies > 1 and not any(HEADING.search(text) for text in dataset["text"]):
        raise ValueError("renamed_copies needs headings such as 'ROMEO:' after an empty line, found none in the text.")
    seeds = random.Random(seed)
    texts = [rename_speakers(text, seeds.getrandbits(64)) for _ in range(num_copies) for text in dataset["text"]]
    return dataset_from_documents([bytes_from_text(text) for text in texts], str(dataset.split or "train"))


def rename_speakers(text: str, seed: int, share: float = SHARE) -> str:
    r"""The text with new names of speakers in about `share` of its pieces of some 12,000 characters.

    A speaker is a word in capitals alone on a line that follows an empty one and ends with a colon, as in
    `"\n\nROMEO:\n"`; lines may end in `"\r\n"`. Within a piece a speaker has one new name, there and where others
    speak of `Romeo`. New names are the beginning of one name of the text and the end of another. Ranks such as `QUEEN`
    are names where they stand alone; the heading at which a piece begins is seen when the speaker has another one
    there. A text without speakers comes back as it is.

    seed: the same seed gives the same names.
    """
    draw = random.Random(seed)
    names = sorted(set(HEADING.findall(text)))
    pieces, start = [], 0
    # Pieces of different copies begin at different places.
    stop = draw.randrange(PIECE // 2, PIECE)
    while start < len(text):
        gap = EMPTY_LINE.search(text, stop)
        stop = gap.end() if gap else len(text)
        piece = text[start:stop]
        pieces.append(_rename(piece, names, draw) if draw.random() < share else piece)
        start, stop = stop, stop + PIECE
    return "".join(pieces)


def _rename(piece: str, names: list[str], draw: random.Random) -> str:
    new = {}
    for speaker in sorted(set(HEADING.findall(piece))):
        first, last = draw.choice(names), draw.choice(names)
        name = first[: draw.randint(2, len(first) - 1)] + last[-draw.randint(2, len(last) - 1) :]
        new |= {speaker: name, speaker.title(): name.title()}
    return re.sub(rf"\b({'|'.join(new)})\b", lambda found: new[found[0]], piece) if new else piece
