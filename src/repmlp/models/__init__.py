"""The networks. Importing this package registers them in timm."""

from .cifar import CifarNet, repmlp_cifar, wide_convnet_cifar

__all__ = ["CifarNet", "repmlp_cifar", "wide_convnet_cifar"]
