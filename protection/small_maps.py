"""The weight gradient of convolutions whose maps are small, in bfloat16 on a CPU.

oneDNN adds each image's part to the whole weight gradient. On a map of a few pixels that is little
arithmetic for much memory traffic (a layer of 512 by 512 channels moves 19 MB for an image), and
where arithmetic is cheap it is most of a ResNet's time. As a product of two matrices, many images
are summed before anything is written::

    dL/dw[o, (i, j, c)] = sum over rows r of grad[r, o] * columns[r, (i, j, c)]

with a row for every pixel of the map in every image, and in its columns what the kernel sees there.
"""

import functools
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Columns repeat each pixel for every place of the kernel: so many rows stay in a core's cache.
_ROWS: Final = 512
# Below so many output channels for each pixel of the map, writing the columns costs more.
_CHANNELS_PER_PIXEL: Final = 4


def use_matrix_products(network: nn.Module) -> None:
    """Have the convolutions of ``network`` do so where it pays; what they compute stays the same.

    Sums are taken in another order. A convolution with groups, dilation or a padding that is not of
    zeros is left alone.
    """
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            vars(module)["forward"] = functools.partial(_convolved, module)


def _convolved(module: nn.Conv2d, images: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    stride, padding = module.stride, module.padding
    assert not isinstance(padding, str)  # use_matrix_products
    pixels = 1
    for axis, size in enumerate(images.shape[-2:]):
        pixels *= (size + 2 * padding[axis] - module.kernel_size[axis]) // stride[axis] + 1
    is_small = module.out_channels >= _CHANNELS_PER_PIXEL * pixels
    if is_small and images.ndim == 4 and images.device.type == "cpu" and weight.requires_grad:
        output: Tensor = _Convolution.apply(images, weight, bias, stride, padding)
        return output
    return F.conv2d(images, weight, bias, stride, padding)


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
