"""qvg: long videos from autoregressive video diffusion models, their history kept in 2 bits a value."""

__version__ = "0.1.0"
