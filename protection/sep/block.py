"""A batch of images of any sizes and modes, as the members see it.

Images keep their own size and mode; the network takes square RGB. What lies between is linear and
differentiable: grey is repeated, transparency is laid over white, and the whole image is resized to
the network's square. So a gradient at the network's input is pulled back to every pixel.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from protection.sep.perturbation import to_levels

# Channel counts with an alpha channel at the end: grey and colour.
_WITH_ALPHA: Final = (2, 4)


class _Group(NamedTuple):
    """Images of one shape."""

    positions: list[int]
    alpha: Tensor | None
    """``(N, 1, H, W)`` float in [0, 1]."""


class Block:
    """Images of one batch, in groups of equal shape; ``colours`` are their clean values.

    ``colours`` is a list with a ``(N, C, H, W)`` float tensor in [0, 1] for each group, ``C`` 1 or
    3; perturbed images have the same form. Alpha is kept as it is.
    """

    def __init__(self, images: Sequence[Tensor], *, image_size: int, like: Tensor) -> None:
        """Hold ``images`` on the device and in the dtype of ``like``.

        Args:
            images: each ``(C, H, W)`` uint8: 1 channel is grey, 2 grey and alpha, 3 RGB, 4 RGB and
                alpha.
            image_size: side of the network's input, pixels.
            like: a parameter of the network.
        """
        self._image_size = image_size
        self._groups: list[_Group] = []
        self.colours: list[Tensor] = []
        shapes = dict.fromkeys(image.shape for image in images)
        for shape in shapes:
            positions = [p for p, image in enumerate(images) if image.shape == shape]
            pixels = torch.stack([images[p] for p in positions]).to(like).div_(255)
            num_colours = shape[0] - (shape[0] in _WITH_ALPHA)
            alpha = pixels[:, num_colours:] if shape[0] in _WITH_ALPHA else None
            self._groups.append(_Group(positions, alpha))
            # The gradients' layout: arithmetic between two layouts takes several times as long.
            colours = pixels[:, :num_colours].contiguous(memory_format=torch.channels_last)
            self.colours.append(colours)

    def inputs(self, colours: Sequence[Tensor]) -> Tensor:
        """``(B, 3, S, S)`` float: what the network sees of ``colours``, in the order of images."""
        seen = [
            self._seen(colour, group) for colour, group in zip(colours, self._groups, strict=True)
        ]
        order = [position for group in self._groups for position in group.positions]
        together = seen[0] if len(seen) == 1 else torch.cat(seen)[_inverse(order)]
        return together.contiguous(memory_format=torch.channels_last)

    def pull_back(self, gradient: Tensor) -> list[Tensor]:
        """The gradient with respect to ``colours`` of what has ``gradient`` at the `inputs`.

        Args:
            gradient: ``(B, 3, S, S)``, of any float type.
        """
        pulled = []
        for colour, group in zip(self.colours, self._groups, strict=True):
            at_inputs = gradient if len(self._groups) == 1 else gradient[group.positions]
            if self._is_seen_as_it_is(colour, group):
                pulled.append(at_inputs)
                continue
            # Linear up to a constant, so the gradient does not depend on where it is taken.
            colour = colour.detach().requires_grad_()
            seen = self._seen(colour, group)
            pulled += torch.autograd.grad(seen, colour, at_inputs.to(seen.dtype))
        return pulled

    def to_images(self, colours: Sequence[Tensor]) -> list[Tensor]:
        """Images ``(C, H, W)`` uint8 on the CPU, alpha as it was, in the order they came in."""
        images: dict[int, Tensor] = {}
        for colour, group in zip(colours, self._groups, strict=True):
            whole = colour if group.alpha is None else torch.cat([colour, group.alpha], dim=1)
            images |= zip(group.positions, to_levels(whole).cpu(), strict=True)
        return [images[position] for position in sorted(images)]

    def _is_seen_as_it_is(self, colour: Tensor, group: _Group) -> bool:
        square = (3, self._image_size, self._image_size)
        return colour.shape[1:] == square and group.alpha is None

    def _seen(self, colour: Tensor, group: _Group) -> Tensor:
        if self._is_seen_as_it_is(colour, group):
            return colour
        if group.alpha is not None:
            colour = colour * group.alpha + (1 - group.alpha)
        # The whole image, not its central square: pixels outside that would stay clean.
        size = (self._image_size, self._image_size)
        square = F.interpolate(colour, size=size, mode="bilinear", antialias=True)
        return square.expand(-1, 3, -1, -1)


def _inverse(order: Sequence[int]) -> Tensor:
    return torch.tensor(order).argsort()
