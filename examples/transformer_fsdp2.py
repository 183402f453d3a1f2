"""Train a small transformer, letter by letter, with its weights divided among processes: FSDP2.

Run it with::

    torchrun --nproc-per-node 2 examples/transformer_fsdp2.py

or alone, with ``python examples/transformer_fsdp2.py``. The text is the documentation in this
repository. In the end, the parts of the weights are gathered, and the model writes some text.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from eventtrain import AvgStatsCallback, DataBunch, Distributed, Learner, Runner, TensorLoader
from eventtrain.callbacks import GradientClip, OneCycle, Seed

ROOT = Path(__file__).resolve().parents[1]
LENGTH, WIDTH, HEADS, DEPTH = 64, 96, 4, 2


class Block(nn.Module):
    """Attention to what came before, then a network for each letter; both add to their input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, width] to the same shape."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Letters [batch, length], as numbers, to logits for the next ones [batch, length, letters]."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        # FSDP2 gathers what is in a ModuleList one at a time.
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.letter(x) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_letter_loss(logits: Tensor, letters: Tensor) -> Tensor:
    """Return the mean cross entropy over all letters of the batch."""
    return cross_entropy(logits.flatten(0, 1), letters.flatten())


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole weights; every process calls this, as each has a part of them."""
    state = model.state_dict()
    return {
        name: part.full_tensor() if hasattr(part, "full_tensor") else part
        for name, part in state.items()
    }


@torch.no_grad()
def write(model: nn.Module, start: Tensor, count: int) -> list[int]:
    """Return ``count`` letters drawn one after the other, as the model expects them."""
    text = start
    for _ in range(count):
        logits = model(text[None, -LENGTH:])[0, -1]
        text = torch.cat([text, torch.multinomial((logits / 0.7).softmax(0), 1)])
    return text.tolist()


def main() -> None:
    """Train; every process runs this."""
    parser = argparse.ArgumentParser(description="Train a transformer on one process or several.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--letters", type=int, default=100_000, help="how much of the text")
    options = parser.parse_args()

    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)[: options.letters]
    alphabet = sorted(set(text))
    numbers = torch.tensor([alphabet.index(letter) for letter in text])
    rows = numbers[: (len(numbers) - 1) // LENGTH * LENGTH].view(-1, LENGTH)
    targets = numbers[1 : rows.numel() + 1].view(-1, LENGTH)
    held_out = len(rows) // 10
    data = DataBunch(
        TensorLoader(rows[held_out:], targets[held_out:], bs=16, shuffle=True, seed=0),
        TensorLoader(rows[:held_out], targets[:held_out], bs=64),
    )
    torch.manual_seed(0)
    # A factory: the optimizer is made once the parameters have been divided.
    learn = Learner(
        Transformer(len(alphabet)),
        lambda params: torch.optim.AdamW(params, lr=1e-3),
        next_letter_loss,
        data,
    )
    run = Runner(
        [
            Seed(0),
            Distributed("fsdp2"),
            AvgStatsCallback(),
            OneCycle(max_lr=1e-2),
            GradientClip(1.0),
        ]
    )
    run.fit(options.epochs, learn)

    weights = gathered(learn.model)
    if run.is_zero:
        whole = Transformer(len(alphabet)).eval()
        whole.load_state_dict(weights)
        letters = write(whole, numbers[:1], 200)
        print("".join(alphabet[letter] for letter in letters))
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
