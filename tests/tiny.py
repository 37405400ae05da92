"""Settings of a run of a second or two, on the digits."""

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
