"""DDPM++ and its ECT step in plain PyTorch, for `accelerator.py`: the network of `cmjax.nets.unet.UNet`.

    python benchmarks/torch_ddpmpp.py --batch=8          # on a CPU: its step and cmjax's in turns, in one process

Channels-last, bfloat16 by autocast on an accelerator, float32 on a CPU; fused attention; RAdam and the average by
`foreach`.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):
    """As `cmjax.nets.blocks.ResidualBlock` with modulation "shift"."""

    def __init__(self, channels: int, features: int, embedding: int, *, resample: str = "", attention: bool = False):
        super().__init__()
        self.resample, self.attention = resample, attention
        self.norm_0, self.conv_0 = norm(channels), nn.Conv2d(channels, features, 3, padding=1)
        self.affine = nn.Linear(embedding, features)
        self.norm_1, self.conv_1 = norm(features), nn.Conv2d(features, features, 3, padding=1)
        plain = channels == features and not resample
        self.shortcut = nn.Identity() if plain else nn.Conv2d(channels, features, 1)
        if attention:
            self.norm_2, self.qkv = norm(features), nn.Conv2d(features, 3 * features, 1)
            self.proj = nn.Conv2d(features, features, 1)

    def resampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv_0(self.resampled(F.silu(self.norm_0(x))))
        h = F.silu(self.norm_1(h + self.affine(embedding)[:, :, None, None]))
        x = (self.shortcut(self.resampled(x)) + self.conv_1(h)) * 0.5**0.5
        if self.attention:
            b, c, height, width = x.shape
            tokens = self.qkv(self.norm_2(x)).permute(0, 2, 3, 1).reshape(b, height * width, 3, 1, c)
            q, k, v = tokens.permute(2, 0, 3, 1, 4).unbind(0)
            attended = F.scaled_dot_product_attention(q, k, v).reshape(b, height, width, c).permute(0, 3, 1, 2)
            x = (x + self.proj(attended)) * 0.5**0.5
        return x


class DDPMPP(nn.Module):
    """F(x, c_noise) of the shape of x."""

    def __init__(
        self, channels: int = 128, mult: tuple[int, ...] = (2, 2, 2), blocks: int = 4, size: int = 32,
        attention: tuple[int, ...] = (16,),
    ):  # fmt: skip
        super().__init__()
        wide = 4 * channels
        self.register_buffer("frequencies", torch.logspace(0, -4, channels // 2))
        self.dense_0, self.dense_1 = nn.Linear(channels, wide), nn.Linear(wide, wide)
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        width, widths, encoder = channels, [channels], []
        for level, m in enumerate(mult):
            attend = size >> level in attention
            if level:
                encoder.append(Block(width, width, wide, resample="down"))
                widths.append(width)
            for _ in range(blocks):
                encoder.append(Block(width, channels * m, wide, attention=attend))
                width = channels * m
                widths.append(width)
        self.encoder, decoder, self.takes_skip = nn.ModuleList(encoder), [], []
        for level, m in reversed(list(enumerate(mult))):
            if level == len(mult) - 1:
                decoder += [Block(width, channels * m, wide, attention=True), Block(channels * m, channels * m, wide)]
                self.takes_skip += [False, False]
            else:
                decoder.append(Block(width, width, wide, resample="up"))
                self.takes_skip.append(False)
            for i in range(blocks + 1):
                attend = i == blocks and size >> level in attention
                decoder.append(Block(width + widths.pop(), channels * m, wide, attention=attend))
                self.takes_skip.append(True)
                width = channels * m
        self.decoder, self.last_norm = nn.ModuleList(decoder), norm(width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        angles = c_noise[:, None] * self.frequencies[None]
        embedding = F.silu(self.dense_0(torch.cat([angles.sin(), angles.cos()], 1)))
        embedding = F.silu(self.dense_1(embedding))
        h = self.first(x)
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding)
            skips.append(h)
        for block, takes_skip in zip(self.decoder, self.takes_skip, strict=True):
            h = block(torch.cat([h, skips.pop()], 1) if takes_skip else h, embedding)
        return self.last(F.silu(self.last_norm(h))).float()


def ect_loss(net: nn.Module, x0: torch.Tensor, noise: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The mean ECT loss: t lognormal, r = t·(1 − n(t)/256), pseudo-Huber with c = 0, weight 1/(t − r)."""
    t = torch.exp(2.0 * draws - 1.1)
    r = t * torch.clamp(1 - (1 + 8 * torch.sigmoid(-t)) / 256, min=0)

    def f(t: torch.Tensor) -> torch.Tensor:
        s = t[:, None, None, None]
        x, variance = x0 + s * noise, s**2 + 0.25
        return 0.25 / variance * x + 0.5 * s / variance.sqrt() * net(x / variance.sqrt(), t.log() / 4)

    with torch.no_grad():
        target = f(r)
    squared = ((f(t) - target) ** 2).flatten(1).sum(1)
    return ((squared + 1e-12).sqrt() / (t - r)).mean()


def trainer(
    batch: int, *, compiled: bool, device: str, **sizes: object
) -> tuple[Callable[[], torch.Tensor], dict[str, float]]:
    """A function that does one step and gives its loss, and how many parameters there are."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest" if device == "cpu" else "high")
    net = DDPMPP(**sizes).to(device, memory_format=torch.channels_last)  # type: ignore[arg-type]
    params = list(net.parameters())
    averages = [p.detach().clone() for p in params]
    rule = torch.optim.RAdam(params, lr=1e-4, foreach=True)
    size = int(sizes.get("size", 32))  # type: ignore[call-overload]
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (batch, 3, size, size), np.uint8)).to(device)
    loss_of = torch.compile(ect_loss) if compiled else ect_loss

    def step() -> torch.Tensor:
        x0 = ((images.float() - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
        draws = torch.randn(batch, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = loss_of(net, x0, torch.randn_like(x0), draws)
        rule.zero_grad(set_to_none=True)
        loss.backward()
        rule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1e-4)
        return loss.detach()

    return step, {"parameters": sum(p.numel() for p in params)}


def main() -> None:
    """Seconds of PyTorch's ECT step and of cmjax's CT step: two evaluations, a gradient, RAdam and an average each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each step, in turns")
    options = parser.parse_args()
    import jax

    from benchmarks import step_time
    from cmjax.nets.adapter import as_net, init_params
    from cmjax.nets.unet import DDPMPP as FIELDS
    from cmjax.nets.unet import UNet
    from cmjax.system.environment import prefer_fast_convolutions

    prefer_fast_convolutions()
    module, shape = UNet(**FIELDS), (options.batch, 32, 32, 3)
    ours, batches = step_time.training(as_net(module), init_params(module, jax.random.key(0), shape[1:]), shape)
    batch, (theirs, _) = batches.at(0), trainer(options.batch, compiled=False, device="cpu")
    measured = step_time.in_turns({"torch": lambda: float(theirs()), "cmjax": lambda: ours(batch)}, options.rounds)
    wall = {name: times[:, 0] for name, times in measured.items()}
    report = {f"{name}_s": [round(float(t), 3) for t in times] for name, times in wall.items()}
    ratio = round(float(np.median(wall["cmjax"] / wall["torch"])), 3)
    told = {"cmjax_over_torch": ratio, "torch": torch.__version__, "jax": jax.__version__, "batch": options.batch}
    print(json.dumps(report | told))


if __name__ == "__main__":
    main()
