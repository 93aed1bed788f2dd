"""Ways to damage a compressed file."""

import random

from hf_latentgen.coding import read_info


def damage(compressed: bytes, number: int, rng: random.Random) -> bytes:
    """The file with a bit flipped, with its end cut off, or with two of its chunks or bytes swapped, by turns."""
    content = bytearray(compressed)
    place = rng.randrange(len(content))
    if number % 3 == 0:
        content[place] ^= 1 << rng.randrange(8)
    elif number % 3 == 1:
        del content[place:]
    elif number % 2:
        info = read_info(compressed)
        first, second = info.start, info.start + int(info.entries["length"][0])
        end = second + int(info.entries["length"][1])
        content[first:end] = compressed[second:end] + compressed[first:second]
    else:
        other = next(index for index in range(len(content)) if content[index] != content[place])
        content[place], content[other] = content[other], content[place]
    return bytes(content)
