"""How many photographs a second are decoded with one and with two workers, beside Pillow alone in a loop.

    python benchmarks/images.py            writes benchmarks/results/images.json; bar: two workers >= 1.6 x one
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL.Image
import torch
from record import record

from flops_fit.data.pictures import decoded

IMAGES = 10_000
KINDS = 100            # different ones; the rest are repeats
STORED, SIZE = 200, 64  # pixels a side
REPEATS = 3
BAR = 1.6


def photograph(seed: int) -> bytes:
    """A JPEG as smooth as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (STORED // 8, STORED // 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(coarse).resize((STORED, STORED), PIL.Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def pillow_alone(encoded: list[bytes]) -> None:
    for one in encoded:
        with PIL.Image.open(io.BytesIO(one)) as image:
            image.draft("RGB", (SIZE, SIZE))
            np.asarray(image.convert("RGB").resize((SIZE, SIZE), PIL.Image.Resampling.BILINEAR))


def rate(action: Callable[[list[bytes]], object], encoded: list[bytes]) -> float:
    """Images a second."""
    start = time.perf_counter()
    action(encoded)
    return len(encoded) / (time.perf_counter() - start)


def workers(count: int, encoded: list[bytes]) -> float:
    """Images a second with so many: as many as there are cores that this process may use."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(cores)[:count])
    torch.set_num_threads(count)  # as it is by itself where there are no more cores
    try:
        return rate(lambda images: decoded(images, SIZE, photographs=True), encoded)
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def main() -> None:
    kinds = [photograph(seed) for seed in range(KINDS)]
    encoded = [kinds[i % KINDS] for i in range(IMAGES)]
    rates: dict[str, list[float]] = {"one": [], "two": [], "pillow": []}
    for _ in range(REPEATS):  # in turns, so that a busy moment of the machine hits all
        rates["one"].append(workers(1, encoded))
        rates["two"].append(workers(2, encoded))
        rates["pillow"].append(rate(pillow_alone, encoded))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    record(
        "images",
        {
            "images": IMAGES,
            "bytes_each": round(statistics.mean(map(len, kinds))),
            "stored": STORED,
            "size": SIZE,
            "images_per_second_one": round(middle["one"]),
            "images_per_second_two": round(middle["two"]),
            "images_per_second_pillow_alone": round(middle["pillow"]),
            "ratio": round(middle["two"] / middle["one"], 3),
            "bar": BAR,
        },
    )


if __name__ == "__main__":
    main()
