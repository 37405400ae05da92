"""Small examples: settings of a run of a second or two, on the digits, and of a block."""

TINY = {
    "model_args": {"channels": [4, 8], "partition_size": 4, "kernel_sizes": [1, 3]},
    "img_size": 8,
    "hflip": 0.0,
    "crop_padding": 1,
    "epochs": 3,
    "batch_size": 64,
    "lr": 0.1,
    "cpu": True,
}

#: Height and width, input and output channels differ, so that a swap shows.
BLOCK = {
    "in_channels": 4,
    "out_channels": 6,
    "feature_size": (6, 12),
    "partition_size": (3, 4),
    "kernel_sizes": (1, 3, (1, 3)),
    "groups": 2,
    "global_reduction": 3,
}
