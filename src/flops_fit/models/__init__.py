"""Architectures, one a file. Velocity networks are made by name: `create_model("dit", dim=1024)`."""

from flops_fit.models.dit import AdaLNBlock, DiTVelocityNetwork
from flops_fit.models.mlp import SimpleMLP
from flops_fit.models.ssm import StateSpaceNetwork
from flops_fit.models.unet import UNetMLP
from flops_fit.models.velocity import ARCHITECTURES, create_model

__all__ = [
    "ARCHITECTURES", "AdaLNBlock", "DiTVelocityNetwork", "SimpleMLP", "StateSpaceNetwork", "UNetMLP", "create_model",
]  # fmt: skip
