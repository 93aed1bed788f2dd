# Copyright 2026 The hf-latentgen authors. Apache-2.0.
"""Text to byte ids and back, exactly, for any bytes.

An id below 256 is the byte itself; 256, 257 and 258 are the padding, beginning and end tokens. So the ids of bytes are
`list(content)`, and where no special token is in the way the bytes of ids are `bytes(ids)`.

Text is `str`, as everywhere in transformers, and stands for its UTF-8 bytes. Bytes that are not UTF-8 are carried by
the `surrogateescape` convention of Python (PEP 383): `content.decode("utf-8", "surrogateescape")` makes a text of any
bytes, `text.encode("utf-8", "surrogateescape")` gives them back.
"""

from typing import Any, ClassVar, cast

import numpy as np
from transformers import AddedToken, PreTrainedTokenizer

NUM_BYTES = 256
PAD_TOKEN_ID, BOS_TOKEN_ID, EOS_TOKEN_ID = 256, 257, 258
VOCAB_SIZE = 259
# Visible ASCII characters are their own token, "A"; every other byte is written as in "<0x0A>", so that no token can be
# mistaken for a character that takes several bytes.
BYTE_TOKENS = [chr(byte) if 0x20 < byte < 0x7F else f"<0x{byte:02X}>" for byte in range(256)]
BYTE_IDS = {token: byte for byte, token in enumerate(BYTE_TOKENS)}


def bytes_from_text(text: str) -> bytes:
    """The bytes that a text stands for: UTF-8, and what surrogateescape carries.

    Raises: ValueError when the text holds a surrogate that stands for no byte.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be valid Unicode, or bytes decoded with surrogateescape (U+DC80 ... U+DCFF), got the lone "
            f"surrogate U+{ord(text[error.start]):04X} at position {error.start}."
        ) from error


class ByteTokenizer(PreTrainedTokenizer):
    """Byte ids from text, a beginning token in front, and text from ids.

    `tokenizer(text)["input_ids"]` is `[257, *bytes]`; the end token is left to whoever ends a document, as a prompt has
    none. `tokenizer.decode(ids)` gives special tokens by name unless `skip_special_tokens=True`. It has no vocabulary
    file.

    Args:
        pad_token: name of id 256.
        bos_token: name of id 257.
        eos_token: name of id 258.
        split_special_tokens: whether "<eos>" in a text is five bytes; otherwise it is the one id 258. Can also be said
            per call.
        errors: "surrogateescape", so that decoding loses nothing, or "replace", so that any result can be printed.

    Raises:
        ValueError: `errors` is another word, a text holds a surrogate that stands for no byte, or ids to be decoded
            are not in the vocabulary.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    # A prompt has to end where the generated text begins.
    padding_side = "left"

    def __init__(
        self,
        pad_token: str | AddedToken = "<pad>",
        bos_token: str | AddedToken = "<bos>",
        eos_token: str | AddedToken = "<eos>",
        split_special_tokens: bool = True,
        errors: str = "surrogateescape",
        **kwargs: Any,
    ):
        if errors not in ("surrogateescape", "replace"):
            raise ValueError(f"errors must be surrogateescape or replace, got {errors!r}.")
        names = [str(token) for token in (pad_token, bos_token, eos_token)]
        if len(set(names)) < len(names) or not BYTE_IDS.keys().isdisjoint(names):
            raise ValueError(f"pad_token, bos_token and eos_token must be three names that no byte has, got {names}.")
        self.errors = errors
        special = zip((PAD_TOKEN_ID, BOS_TOKEN_ID, EOS_TOKEN_ID), (pad_token, bos_token, eos_token), strict=True)
        self._added_tokens_decoder = {index: _special_token(token) for index, token in special}
        super().__init__(
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            split_special_tokens=split_special_tokens,
            errors=errors,
            special_tokens_pattern="bos",
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """259: the bytes and the three special tokens."""
        return VOCAB_SIZE

    def get_vocab(self) -> dict[str, int]:
        """Id of each token."""
        return {**BYTE_IDS, **self._added_tokens_encoder}

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Id of a token, or ids of a list of tokens; None for what is no token."""
        if isinstance(tokens, str):
            return super().convert_tokens_to_ids(tokens)
        # One call for a million tokens.
        return cast(list[int], list(map(self.get_vocab().get, tokens)))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """No file names: the ids follow from the bytes."""
        return ()

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(map(BYTE_TOKENS.__getitem__, bytes_from_text(text)))

    def _convert_token_to_id(self, token: str) -> int | None:
        return BYTE_IDS.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        self._check_ids(np.array([index]))
        return BYTE_TOKENS[index]

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        ids = np.atleast_1d(np.asarray(token_ids, dtype=np.int64))
        self._check_ids(ids)
        if skip_special_tokens:
            ids = ids[~np.isin(ids, self.all_special_ids)]
        pieces, start = [], 0
        for position in np.flatnonzero(ids > 255):
            pieces.append(ids[start:position].astype(np.uint8).tobytes())
            pieces.append(bytes_from_text(self._added_tokens_decoder[int(ids[position])].content))
            start = position + 1
        pieces.append(ids[start:].astype(np.uint8).tobytes())
        return b"".join(pieces).decode("utf-8", self.errors)

    def _check_ids(self, ids: np.ndarray) -> None:
        """Raise `ValueError` when an id is not in the vocabulary."""
        wrong = ids[(ids < 0) | (ids >= len(self))]
        if wrong.size:
            raise ValueError(f"ids must lie in 0 ... {len(self) - 1}, got {wrong[0]}.")


def _special_token(token: str | AddedToken) -> AddedToken:
    return token if isinstance(token, AddedToken) else AddedToken(token, special=True, normalized=False)
