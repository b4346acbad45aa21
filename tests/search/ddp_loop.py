"""The loop of docs/own-space.md in several processes, by torchrun; writes what each came to."""

import re
import sys
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "own-space.md"


def main(folder: str) -> None:
    first, *others = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (together,) = (block for block in others if "DistributedDataParallel" in block)
    definitions = first.split("torch.manual_seed(0)")[0]
    names = {"__name__": "page"}
    exec(definitions, names)
    names["example"], begin = torch.zeros(1, 8), together.splitlines()[0]
    exec(begin, names)
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)  # other weights and other data in each: DDP makes the weights alike
    exec(together.removeprefix(begin), names)
    searcher = names["searcher"]
    result = searcher.finish()
    found = {"choices": dict(result.choices), "passed": searcher.passed, "cost": result.cost,
             "whole": searcher.supernet.cost(searcher.passed[0]),
             "weights": dict(result.model.state_dict())}  # fmt: skip
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
