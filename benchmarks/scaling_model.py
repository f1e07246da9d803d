"""How long a round of SOPHON and a block of SEP take on W workers: the algebra, and its fit.

A round of E episodes of K steps and R reinforcement steps of S shards, on a model of P parameters::

    round(W) = ceil(E / W) * (a + b K)          episodes, each on one worker
             + A(8 P)                           their mean gradient, summed in float64
             + R * (ceil(S / W) / S * s + A(8 P))    reinforcement
             + c + 3 A(0)                       validation, Adam, copies; losses and clocks

    A(n) = 2 (W - 1) latency + 2 (W - 1) / W * n / bandwidth    a ring's all-reduce of n bytes

    a, b, s, c: seconds of an episode's start and end, of a step of it, of a reinforcement step, and
    of the rest of a round.

Images of SEP are protected independently, in blocks::

    images per second(W) = W / t * (blocks / W) / ceil(blocks / W)
    t = steps * members * g + d                 g: one gradient of one image; d: its way to storage
    bytes per second of S3 = images per second * (read + 2 written), since what was written is read
    back

Not in it: validation images are shared by workers, which counts them too dear in `c`; whatever a
machine's cores do to each other; starting.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


class Link(NamedTuple):
    """What connects workers."""

    latency_seconds: float
    bytes_per_second: float

    def all_reduce(self, num_bytes: float, *, workers: int) -> float:
        """Seconds of a ring's all-reduce."""
        hops = 2 * (workers - 1)
        return hops * self.latency_seconds + hops / workers * num_bytes / self.bytes_per_second


class Shape(NamedTuple):
    """What a round consists of."""

    episodes: int
    episode_length: int
    reinforcement_steps: int
    shards: int
    parameters: int


class Costs(NamedTuple):
    """Seconds, on one worker."""

    episode: float
    step: float
    reinforcement: float
    rest: float

    def round_seconds(self, shape: Shape, link: Link, *, workers: int) -> float:
        """Seconds of a round."""
        gradient = link.all_reduce(8 * shape.parameters, workers=workers)
        episodes = math.ceil(shape.episodes / workers)
        shards = math.ceil(shape.shards / workers) / shape.shards
        return (
            episodes * (self.episode + self.step * shape.episode_length)
            + gradient
            + shape.reinforcement_steps * (shards * self.reinforcement + gradient)
            + self.rest
            + 3 * link.all_reduce(0, workers=workers)
        )


def fit_costs(shapes: Sequence[Shape], seconds: Sequence[float]) -> Costs:
    """Least squares over rounds of one worker; relative errors count, and no cost is negative."""
    columns = np.array(
        [[s.episodes, s.episodes * s.episode_length, s.reinforcement_steps, 1] for s in shapes],
        dtype=float,
    )
    found, _ = nnls(columns / np.array(seconds)[:, None], np.ones(len(seconds)))
    return Costs(*found.tolist())


def fit_link(num_bytes: Sequence[float], seconds: Sequence[float], *, workers: int) -> Link:
    """Latency and bandwidth by least squares of relative errors over timed all-reduces."""
    hops = 2 * (workers - 1)
    columns = np.array([[hops, hops / workers * n] for n in num_bytes])
    (latency, per_byte), _ = nnls(columns / np.array(seconds)[:, None], np.ones(len(seconds)))
    return Link(float(latency), 1 / float(per_byte))


def images_per_second(image_seconds: float, *, blocks: int, workers: int) -> float:
    """Of SEP: the last blocks keep only some of the workers busy."""
    return workers / image_seconds * (blocks / workers) / math.ceil(blocks / workers)
