"""The codes of three kinds of likelihood: pixel by pixel, byte by byte, and bits-back for latents.

Each codec encodes groups of chunks and decodes them again. Encoder and decoder run one and the same function, which
asks for the next symbols and does not know which of the two it serves.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from hf_latentgen.coding.arithmetic import bytes_to_words, entropy_coder, probabilities, words_to_bytes
from hf_latentgen.coding.integer_ring import bytes_of_ring, new_ring
from hf_latentgen.models.distributions import DiagonalGaussian
from hf_latentgen.models.local_attention_interface import NAME
from hf_latentgen.models.modeling_latentgen import LatentGenModel
from hf_latentgen.models.tokenization_bytes import BOS_TOKEN_ID, NUM_BYTES

# A change of any of these numbers, or of a codec's own below, is a new FORMAT_VERSION.
# A latent is coded as a multiple of one of these steps, from -LATENT_RANGE to LATENT_RANGE. The coder gives each
# multiple a chance of 2^-24 or more. Finer steps than the first have more of them: a latent far outside of its
# posterior is drawn now and then, which costs more bits than wide steps do. Coarser ones need fewer bits on the stack.
LATENT_STEPS, LATENT_RANGE = (1 / 64, 1 / 8, 1 / 2, 2.0), 8
# Of the learning while coding, as in dynamic evaluation: bytes of a chunk between two steps, and those that are read
# before them.
ADAPT_STRIDE, ADAPT_CONTEXT, ADAPT_LEARNING_RATE = 256, 512, 2e-4
# Chunks of bytes that learn together: fewer, and the model learns more often.
ADAPT_GROUP = 16
# Of the keys and values of a group of chunks.
MOST_BYTES = 2**29


class Codec(Protocol):
    """A code: its name in a file, items of a chunk, chunks coded together, chunks or images the model sees at once."""

    name: str
    chunk: int
    group: int
    batch: int

    def encode(self, chunks: Sequence[np.ndarray]) -> list[bytes]:
        """The payload of each chunk of a group."""
        ...

    def decode(self, payloads: Sequence[bytes], lengths: Sequence[int]) -> list[np.ndarray]:
        """The chunks of a group, uint8, of `lengths` items each. A damaged payload harms no other chunk."""
        ...


def codec_for(model: LatentGenModel, adapt: bool = False) -> Codec:
    """The codec of a `frozen` model.

    Raises:
        ValueError: the model has no likelihood, is told classes, or is to adapt and reads images.
    """
    likelihood = model.likelihood
    reads_bytes = model.config.reads_text
    if likelihood is None:
        kind = model.kind
        raise ValueError(
            f"model must have a likelihood, got {kind!r}, which says of no image how probable it is: no code follows"
        )
    if adapt and not reads_bytes:
        raise ValueError("adapt must be False for a model of images, got True")
    if reads_bytes:
        return ByteCodec(model, adapt)
    if likelihood == "bound":
        return BitsBackCodec(model)
    if model.num_sample_classes:
        raise ValueError("is_class_conditional must be False: the code of an image would need its class, got True")
    return PixelCodec(model)


class PixelCodec:
    """Range coding in raster order, `batch` images in step. A chunk has several batches: its frame costs less."""

    name, chunk, group, batch = "pixels", 512, 1, 128

    def __init__(self, model: LatentGenModel):
        self.model = model
        model.set_attn_implementation(NAME)
        self.stream = entropy_coder()
        self.family = self.stream.model.Categorical(perfect=False)

    def encode(self, chunks: Sequence[np.ndarray]) -> list[bytes]:
        """The payload of one chunk of images [B, C, H, W]."""
        (images,) = chunks
        values = np.moveaxis(images, 1, -1).reshape(len(images), -1).astype(np.int32)
        encoder = self.stream.queue.RangeEncoder()

        def code(start: int, position: int, chances: np.ndarray) -> np.ndarray:
            symbols = np.ascontiguousarray(values[start : start + len(chances), position])
            encoder.encode(symbols, self.family, chances)
            return symbols

        self._run(len(images), code)
        return [words_to_bytes(encoder.get_compressed())]

    def decode(self, payloads: Sequence[bytes], lengths: Sequence[int]) -> list[np.ndarray]:
        """The images of one chunk, uint8 [B, C, H, W]."""
        decoder = self.stream.queue.RangeDecoder(bytes_to_words(payloads[0]))
        values = self._run(lengths[0], lambda _start, _position, chances: decoder.decode(self.family, chances))
        size, channels = self.model.config.image_size, self.model.config.num_channels
        images = values.numpy().astype(np.uint8).reshape(-1, size, size, channels)
        return [np.ascontiguousarray(np.moveaxis(images, -1, 1))]

    def _run(self, count: int, code: Callable[[int, int, np.ndarray], np.ndarray]) -> Tensor:
        """Values in raster order [count, H * W * C] that `code` gives, asked for each position of each batch."""
        values = torch.zeros(count, self.model.config.num_dims, dtype=torch.int64)
        for start in range(0, count, self.batch):
            part = values[start : start + self.batch]
            steps = self.model.steps(part, new_ring=new_ring)
            for position in range(part.shape[1]):
                symbols = code(start, position, probabilities(steps.logits(position)))
                part[:, position] = torch.from_numpy(symbols.astype(np.int64))
        return values


class ByteCodec:
    """Range coding byte by byte, the chunks of a group in step, each with a coder of its own.

    With `adapt` the model learns from each stretch of all chunks once it is coded, so that every later one depends on
    it; the codec then codes the groups of one file, in order, and no other.

    Source: Krause et al. (2018), Dynamic Evaluation of Neural Sequence Models.
    """

    name, chunk, group = "bytes", 2**16, 64

    def __init__(self, model: LatentGenModel, adapt: bool):
        self.model = copy.deepcopy(model).requires_grad_() if adapt else model
        # The weights are read once for all chunks in step, keys and values once for each.
        windows = [min(max(own, default=self.chunk), self.chunk) for own in model.config.head_windows]
        values = 2 * model.config.num_key_value_heads * model.config.head_dim
        most = [
            self.group,
            MOST_BYTES // sum(bytes_of_ring(values, window) for window in windows),
            *([ADAPT_GROUP] if adapt else []),
        ]
        self.group = max(min(most), 1)
        self.batch = self.group
        self.model.set_attn_implementation(NAME)
        self.optimizer = torch.optim.Adam(self.model.parameters(), ADAPT_LEARNING_RATE, (0.9, 0.99)) if adapt else None
        self.stream = entropy_coder()
        self.family = self.stream.model.Categorical(perfect=False)

    def encode(self, chunks: Sequence[np.ndarray]) -> list[bytes]:
        """The payloads of chunks of bytes, uint8 [N] each."""
        encoders = [self.stream.queue.RangeEncoder() for _ in chunks]

        def code(row: int, position: int, chances: np.ndarray) -> np.ndarray:
            symbol = chunks[row][position : position + 1].astype(np.int32)
            encoders[row].encode(symbol, self.family, chances)
            return symbol

        self._run([len(chunk) for chunk in chunks], code)
        return [words_to_bytes(encoder.get_compressed()) for encoder in encoders]

    def decode(self, payloads: Sequence[bytes], lengths: Sequence[int]) -> list[np.ndarray]:
        """The chunks, uint8 [N] each. The chunk of a damaged payload is arbitrary."""
        decoders = [self.stream.queue.RangeDecoder(bytes_to_words(payload)) for payload in payloads]

        def code(row: int, _: int, chances: np.ndarray) -> np.ndarray:
            try:
                return decoders[row].decode(self.family, chances)
            # What constriction says of words that no encoder has written.
            except AssertionError:
                return np.zeros(1, np.int32)

        ids = self._run(lengths, code)
        return [ids[row, 1 : 1 + length].numpy().astype(np.uint8) for row, length in enumerate(lengths)]

    @torch.no_grad()
    def _run(self, lengths: Sequence[int], code: Callable[[int, int, np.ndarray], np.ndarray]) -> Tensor:
        longest = max(lengths)
        ids = torch.zeros(len(lengths), 1 + longest, dtype=torch.int64)
        ids[:, 0] = BOS_TOKEN_ID
        steps = self.model.model.steps(longest, new_ring)
        for position in range(longest):
            states = steps(self.model.model.embed_tokens(ids[:, position : position + 1]))
            chances = probabilities(self.model.lm_head(states)[:, :NUM_BYTES])
            symbols = [
                int(code(row, position, chances[row : row + 1])[0]) if position < length else 0
                for row, length in enumerate(lengths)
            ]
            ids[:, position + 1] = torch.tensor(symbols)
            if self.optimizer is not None and (position + 1) % ADAPT_STRIDE == 0:
                self._learn(ids[:, : position + 2], lengths)
                steps.read_weights()
        return ids

    @torch.enable_grad()
    def _learn(self, ids: Tensor, lengths: Sequence[int]) -> None:
        """A step on the bytes since the last one, those of chunks that have not ended."""
        assert self.optimizer is not None
        stop = ids.shape[1]
        seen = min(ADAPT_STRIDE + ADAPT_CONTEXT, self.model.config.max_position_embeddings or stop)
        window = ids[:, max(stop - seen, 0) :]
        labels = window.clone()
        labels[:, :-ADAPT_STRIDE] = -100
        past = torch.arange(stop - window.shape[1], stop) > torch.tensor(lengths).unsqueeze(1)
        loss = self.model(input_ids=window, labels=labels.masked_fill(past, -100), use_cache=False).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


class Grid:
    """Multiples of a step as values of a latent, and the coder's distributions of them."""

    def __init__(self, step: float, model: ModuleType):
        self.step = step
        half = round(LATENT_RANGE / step)
        self.limits = (-half, half - 1)
        self.posterior = model.QuantizedGaussian(*self.limits)
        self.prior = model.QuantizedGaussian(*self.limits, 0.0, 1 / step)

    def mode(self, mean: np.ndarray, _: np.ndarray) -> np.ndarray:
        """The multiples nearest to means that are given in steps."""
        return np.rint(mean).clip(*self.limits).astype(np.int32)

    def latents(self, codes: np.ndarray) -> Tensor:
        """The values that multiples stand for."""
        return torch.from_numpy(codes.astype(np.float64) * self.step)


class BitsBackCodec:
    """Bits-back coding on a stack: the latents of an image are drawn with bits that images before it have left there.

    The first image finds none. Its latents are the posterior's mode, and cost what they cost; no random bits are
    needed. Then as many images are coded at once as the stack has bits for, at most `batch`, and how many is written
    with them. The network sees the next power of two of images, blank ones among them.

    Latents are multiples of a step, whose prior and posterior are normal distributions of these intervals. The
    intervals are equally wide rather than equally probable, so that a posterior far from the origin keeps its shape.
    While the stack has too few bits for one image with the finest of `LATENT_STEPS`, a coarser one serves.

    Source: Townsend et al. (2019), Practical Lossless Compression with Latent Variables using Bits Back Coding.
    """

    name, chunk, group, batch = "bits-back", 2048, 1, 16

    def __init__(self, model: LatentGenModel):
        self.model = model
        self.stream = entropy_coder()
        self.pixels = self.stream.model.Categorical(perfect=False)
        self.grids = [Grid(step, self.stream.model) for step in LATENT_STEPS]
        # How many images are coded at once, and of which kind: drawn from a grid, or without bits from the stack.
        self.marker = self.stream.model.Uniform(2 * len(self.grids) * self.batch)

    @torch.no_grad()
    def encode(self, chunks: Sequence[np.ndarray]) -> list[bytes]:
        """The payload of one chunk of images [B, C, H, W]."""
        (images,) = chunks
        stack = self.stream.stack.AnsCoder()
        # Words that an image takes from the stack; of the first one nothing is known, and the stack is empty.
        start, words = 0, math.inf
        while start < len(images):
            size = max(min(int(stack.num_words() / words), self.batch, len(images) - start), 1)
            while size and (coded := self._code(stack, images[start : start + size], 0)) is None:
                size //= 2
            words = math.inf if size == 0 else max(coded[1] / size, 1)
            if size == 0:
                size, coded = 1, self._code_one(stack, images[start : start + 1])
            stack = coded[0]
            start += size
        return [words_to_bytes(stack.get_compressed())]

    @torch.no_grad()
    def decode(self, payloads: Sequence[bytes], lengths: Sequence[int]) -> list[np.ndarray]:
        """The images of one chunk, uint8 [B, C, H, W], found from the last to the first.

        Raises:
            ValueError: the stack does not hold `lengths` images.
        """
        config, end = self.model.config, lengths[0]
        stack = self.stream.stack.AnsCoder(bytes_to_words(payloads[0]))
        images = np.empty((end, config.num_channels, config.image_size, config.image_size), np.uint8)
        while end > 0:
            kind, size = divmod(int(stack.decode(self.marker, 1)[0]), self.batch)
            is_direct, grid = divmod(kind, len(self.grids))
            grid, size = self.grids[grid], size + 1
            if size > end:
                raise ValueError(f"stack must hold {end} more images, got {size}")
            sizes = [size * latents for latents in self.model.latent_sizes]
            symbols = np.split(stack.decode(grid.prior, sum(sizes)), np.cumsum(sizes)[:-1])
            states, state = self._states([grid.latents(self._padded(part.reshape(size, -1))) for part in symbols])
            part = np.empty((size, *images.shape[1:]), np.uint8)
            for place, chances in self._chances(state, torch.from_numpy(part), size):
                part[place] = stack.decode(self.pixels, chances).reshape(part[place].shape)
            images[end - size : end] = part
            if not is_direct:
                features = self._features(self._padded(part))
                for group in reversed(range(len(symbols))):
                    given = self._posterior(group, features[group], states[group], size, grid)
                    stack.encode_reverse(symbols[group], grid.posterior, *given)
            end -= size
        return [images]

    def _code_one(self, stack, image: np.ndarray) -> tuple:
        """As `_code` one image, of the kinds that the stack has bits for the one with which it stays smallest."""
        count = len(self.grids)
        for kinds in (range(1, count), range(count, 2 * count)):
            coded = [found for kind in kinds if (found := self._code(stack, image, kind)) is not None]
            if coded:
                return min(coded, key=lambda found: found[0].num_bits())
        raise AssertionError("a code without bits from the stack is always there")

    def _code(self, stack, images: np.ndarray, kind: int) -> tuple | None:
        """A stack with the images, and the words that their latents took from it; None if there were too few.

        Args:
            stack: stays as it is.
            images: those that are coded at once. [size, C, H, W].
            kind: the number of the grid; the same again, counted on, to take modes and nothing from the stack.
        """
        size, stack = len(images), stack.clone()
        is_direct, number = divmod(kind, len(self.grids))
        grid, available = self.grids[number], stack.num_words()
        draw = lambda mean, std: stack.decode(grid.posterior, mean, std)  # noqa: E731
        codes, state = self._infer(images, grid.mode if is_direct else draw, grid)
        taken = available - stack.num_words()
        # Where words besides the coder's state are left, none was missing. An empty coder would go on in silence.
        if not is_direct and stack.num_words() <= 2:
            return None
        for place, chances in reversed(list(self._chances(state, torch.from_numpy(images), size))):
            stack.encode_reverse(images[place].ravel().astype(np.int32), self.pixels, chances)
        stack.encode_reverse(np.concatenate([code.ravel() for code in codes]), grid.prior)
        stack.encode_reverse(np.array([size - 1 + self.batch * kind], np.int32), self.marker)
        return stack, taken

    def _infer(
        self, images: np.ndarray, choose: Callable[[np.ndarray, np.ndarray], np.ndarray], grid: Grid
    ) -> tuple[list[np.ndarray], Tensor]:
        """Codes chosen from the posteriors of the images, coarse to fine, and the decoder's state."""
        size, state, codes = len(images), None, []
        for group, feature in enumerate(self._features(self._padded(images))):
            codes.append(choose(*self._posterior(group, feature, state, size, grid)).reshape(size, -1))
            state = self.model.decoder.advance(group, grid.latents(self._padded(codes[-1])), state)
        return codes, cast(Tensor, state)

    def _states(self, latents: list[Tensor]) -> tuple[list[Tensor | None], Tensor]:
        """The decoder's state before each group of latents, and after the last."""
        states: list[Tensor | None] = [None]
        for group, own in enumerate(latents):
            states.append(self.model.decoder.advance(group, own, states[-1]))
        return states[:-1], cast(Tensor, states[-1])

    def _features(self, images: np.ndarray) -> list[Tensor]:
        return self.model._encode_features(torch.from_numpy(images))

    def _posterior(
        self, group: int, feature: Tensor, state: Tensor | None, size: int, grid: Grid
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of the first `size` images' latents, in steps of the grid. [size * L]."""
        mean, log_std = self.model.encoder.posterior(group, feature, state)[:size].chunk(2, 1)
        gaussian = DiagonalGaussian(mean, log_std)
        scaled = (part.flatten().numpy() / grid.step for part in (gaussian.mean, gaussian.std))
        return cast(tuple[np.ndarray, np.ndarray], tuple(scaled))

    def _chances(self, state: Tensor, levels: Tensor, size: int) -> Iterator[tuple[tuple, np.ndarray]]:
        """Of each part of the first `size` images, given the levels of those before, its place and probabilities."""
        pixels = self.model._decoded_pixels(self.model.decoder.finish(state)[:size])
        for place, values in pixels.parts(levels):
            yield place, probabilities(values.logits.movedim(1, -1))

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """Rows and zeros, a power of two together, which encoder and decoder find by the number of rows alone."""
        missing = 2 ** (len(rows) - 1).bit_length() - len(rows)
        return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
