"""No images at all: a search over layers for a table (the wine data of scikit-learn).

python examples/tabular_or_sequence.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

import dsonas


class Rows(nn.Module):
    """A residual network over rows: which layers, how deep, and which depths the head reads."""

    def __init__(self, inputs: int, classes: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            dsonas.LayerChoice(
                {
                    "linear": nn.Sequential(nn.Linear(width, width), nn.ReLU()),
                    "wide": nn.Sequential(
                        nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
                    ),
                    "gate": nn.Sequential(nn.Linear(width, width), nn.Sigmoid()),
                    "skip": nn.Identity(),
                }
            )
            for _ in range(depth)
        )
        self.join = dsonas.InputChoice(depth + 1, keep=2)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features[-1]))
        return self.head(self.join(features))


def error(model: nn.Module, x, y) -> float:
    with torch.no_grad():
        return 100 * (model.eval()(x).argmax(1) != y).float().mean().item()


def main(epochs: int = 60, seed: int = 0) -> None:
    torch.manual_seed(seed)
    rows, labels = load_wine(return_X_y=True)
    x, test_x, y, test_y = train_test_split(rows, labels, stratify=labels, random_state=seed)
    scaler = StandardScaler().fit(x)
    x, test_x = (torch.tensor(scaler.transform(part), dtype=torch.float32) for part in (x, test_x))
    y, test_y = torch.tensor(y), torch.tensor(test_y)

    model = Rows(x.shape[1], 3)
    searcher = dsonas.Searcher(model, x[:1], budget=dsonas.Budget(macs="30%"), steps=4 * epochs)
    optimizer = torch.optim.Adam(searcher.weights(), lr=0.003)
    for _ in range(epochs):
        parts = torch.randperm(len(x)).chunk(8)
        for weight_rows, factor_rows in zip(parts[::2], parts[1::2], strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x[weight_rows]), y[weight_rows]).backward()
            optimizer.step()
            F.cross_entropy(model(x[factor_rows]), y[factor_rows]).backward()
            searcher.step()
    result = searcher.finish()
    print(f"choices {dict(result.choices)}")
    wrong = error(result.model, test_x, test_y)
    print(f"{result.cost:.0f} multiply-adds, test error {wrong:.1f} %")


if __name__ == "__main__":
    main()
