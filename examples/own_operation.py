"""An operation of your own in the search: a dilated depthwise convolution.

The command line imports this file, and then knows the operation by its name:

    dsonas run --import examples/own_operation.py --data.name digits \
        --network.operations '[separable_conv3x3,dilated3x3,max_pool3x3]'

``evaluate`` and ``predict`` want the same ``--import``. Run as a script, it searches from Python:

    python examples/own_operation.py
"""

from torch import nn

import dsonas


@dsonas.register_operation("dilated3x3")
def dilated3x3(channels: int) -> nn.Module:
    """Features (B, C, H, W) to the same shape; the block appends BN and ReLU, costs are counted."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def main() -> None:
    """A short search on digits; prints what it has found and what that costs."""
    data = dsonas.load_data(dsonas.DataConfig(name="digits", max_train_images=400))
    skeleton = dsonas.Skeleton(
        input_channels=data.input_channels,
        image_size=data.image_size,
        num_classes=data.num_classes,
        blocks=(1, 1),
        channels=(8, 16),
    )
    space = dsonas.SearchSpace(
        skeleton=skeleton,
        operations=("separable_conv3x3", "dilated3x3", "max_pool3x3"),
        num_levels=2,
    )
    result = dsonas.search(
        space,
        data,
        budget=dsonas.Budget(params="5k"),
        seed=0,
        pretrain=dsonas.PretrainConfig(epochs=2, batch_size=32),
        config=dsonas.SearchConfig(epochs=6, batch_size=32),
    )
    block = result.architecture.blocks[0]
    found = [block.operation(node) for node in block.kept_nodes]
    print(f"kept {len(found)} of 6 operations: {', '.join(found)}")
    cost = dsonas.architecture_cost(result.architecture)
    print(f"{cost.macs:,} multiply-adds, {cost.params:,} parameters")


if __name__ == "__main__":
    main()
