"""Convolutions in bfloat16 on a CPU: as matrix products, where oneDNN takes longer.

oneDNN reads all weights for every image, and adds every image's part to the whole weight gradient.
On a map of a few pixels that is little arithmetic for much memory traffic (a layer of 512 by 512
channels moves 19 MB for an image), and where arithmetic is cheap it is most of a ResNet's time. In
a product of two matrices many images share what is read, and are summed before it is written.

- Where every pixel is seen once (kernels of one pixel, patches), or a map becomes one pixel, a
  convolution is a product of what the kernel sees with its weights. Weights that see nothing but
  padding have no part in it.
- The weight gradient of any other kernel, on a small map, is a product with a row for every pixel
  of the map in every image, and in its columns what the kernel sees there::

    dL/dw[o, (i, j, c)] = sum over rows r of grad[r, o] * columns[r, (i, j, c)]
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Columns repeat each pixel for every place of the kernel: so many rows stay in a core's cache.
_ROWS: Final = 512
# Below so many output channels for each pixel of the map, writing the columns costs more.
_CHANNELS_PER_PIXEL: Final = 4


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """What `torch.nn.functional.conv2d` returns, with sums in another order.

    A convolution with groups or dilation is left to torch, and one of images that are not
    channels-last: there the products would read across rows.
    """
    is_plain = groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str)
    is_ours = is_plain and images.ndim == 4 and images.device.type == "cpu"
    if not is_ours or not images.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(images, weight, bias, stride, padding, dilation, groups)
    assert not isinstance(padding, str)  # is_plain
    stride, padding = _pair(stride), _pair(padding)
    out_channels, _, *kernel = weight.shape
    height, width = (
        (size + 2 * p - k) // s + 1
        for size, p, k, s in zip(images.shape[2:], padding, kernel, stride, strict=True)
    )
    if min(height, width) < 1:  # torch says what is wrong
        return F.conv2d(images, weight, bias, stride, padding)
    sees_pixels = all(p < k for p, k in zip(padding, kernel, strict=True))
    if height == width == 1 and sees_pixels:
        images, weight = _seen(images, weight, padding)
        return _of_patches(images, weight, bias)
    # All of the image: the gradient of a piece of it would be in another layout, and so would all
    # that comes of it.
    covered = (height * stride[0], width * stride[1])
    if padding == (0, 0) and kernel == list(stride) and images.shape[2:] == covered:
        return _of_patches(images, weight, bias)
    if weight.requires_grad and out_channels >= _CHANNELS_PER_PIXEL * height * width:
        output: Tensor = _Convolution.apply(images, weight, bias, stride, padding)
        return output
    return F.conv2d(images, weight, bias, stride, padding)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return first, second


def _seen(images: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pixels that a kernel at its first place sees, and the weights that see them."""
    (top, left), (high, wide) = padding, weight.shape[2:]
    window = images
    if images.shape[2] > high - top or images.shape[3] > wide - left:
        window = images[:, :, : high - top, : wide - left]
    return window, weight[:, :, top : top + window.shape[2], left : left + window.shape[3]]


def _of_patches(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution of images that the kernel covers in tiles."""
    high, wide = weight.shape[2:]
    batch, channels, height, width = images.shape
    size = (batch, height // high, high, width // wide, wide, channels)
    tiles = images.permute(0, 2, 3, 1).reshape(size).transpose(2, 3).flatten(3)
    return F.linear(tiles, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        of_images, of_weight, of_bias, *_ = ctx.needs_input_grad
        images_grad = None
        if of_images:
            images_grad, _, _ = torch.ops.aten.convolution_backward(
                *(grad, images, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1),
                [True, False, False],
            )
        weight_grad = None
        if of_weight:
            weight_grad = _weight_gradient(grad, images, weight, ctx.stride, ctx.padding)
        bias_grad = grad.sum(dim=(0, 2, 3)) if of_bias else None
        return images_grad, weight_grad, bias_grad, None, None


def _weight_gradient(
    grad: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """``(O, C, kh, kw)`` in at least float32, of ``grad`` ``(B, O, h, w)``."""
    out_channels, channels, *kernel = weight.shape
    batch, _, height, width = grad.shape
    grad, images = grad.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    at_once = max(1, _ROWS // (height * width))
    products = (
        grad[first : first + at_once].reshape(-1, out_channels).t()
        @ _columns(images[first : first + at_once], kernel, stride, padding, (height, width))
        for first in range(0, batch, at_once)
    )
    total = next(products).to(dtype)
    for product in products:
        total += product
    return total.view(out_channels, *kernel, channels).permute(0, 3, 1, 2)


def _columns(
    images: Tensor,
    kernel: list[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """``(B h w, kh kw C)`` of ``(B, H, W, C)``."""
    vertical, horizontal = padding
    padded = F.pad(images, (0, 0, horizontal, horizontal, vertical, vertical)).contiguous()
    batch, _, _, channels = padded.shape
    of_image, of_row, of_pixel, of_channel = padded.stride()
    windows = padded.as_strided(
        (batch, *size, *kernel, channels),
        (of_image, of_row * stride[0], of_pixel * stride[1], of_row, of_pixel, of_channel),
    )
    return windows.reshape(batch * size[0] * size[1], -1)
