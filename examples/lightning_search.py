"""A search from the training_step of a LightningModule: manual optimisation, two loaders.

python examples/lightning_search.py
"""

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import dsonas

WIDTH = 8


def network() -> nn.Module:
    def layer() -> nn.Module:
        return dsonas.LayerChoice(
            {
                "conv3x3": nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()),
                "conv1x1": nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU()),
                "pool": nn.AvgPool2d(3, 1, 1),
                "skip": nn.Identity(),
            }
        )

    stem, head = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Linear(16 * WIDTH, 10)
    return nn.Sequential(stem, layer(), layer(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), head)


class Search(L.LightningModule):
    """Weights learn from one part of the data, scaling factors from the other."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network()
        example = torch.zeros(1, 1, 8, 8)
        budget = dsonas.Budget(macs="60%")
        self.searcher = dsonas.Searcher(self.network, example, budget=budget, steps=steps)

    def training_step(self, batch, batch_idx):
        (x, y), (factor_x, factor_y) = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.network(x), y))
        optimizer.step()
        self.manual_backward(F.cross_entropy(self.network(factor_x), factor_y))
        self.searcher.step()
        self.log("macs", self.searcher.cost(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.searcher.weights(), lr=0.05, momentum=0.9)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["searcher"] = self.searcher.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.searcher.load_state_dict(checkpoint["searcher"])  # before the weights are loaded


def main(epochs: int = 6) -> dsonas.SearchResult:
    L.seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    parts = random_split(TensorDataset(images, torch.tensor(digits.target)), [0.5, 0.5])
    loaders = [DataLoader(part, 32, shuffle=True, drop_last=True) for part in parts]
    module = Search(steps=epochs * len(loaders[0]))
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, CombinedLoader(loaders, "min_size"))
    result = module.searcher.finish()
    print(dict(result.choices), f"{result.cost:.0f} multiply-adds")
    return result


if __name__ == "__main__":
    main()
