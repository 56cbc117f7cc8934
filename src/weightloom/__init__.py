"""Weightloom generates the weights of neural networks instead of training them."""

__version__ = "0.1.0"
