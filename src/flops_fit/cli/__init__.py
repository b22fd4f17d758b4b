"""The command line: parse, call, print. One JSON document on stdout with --json; all else goes to stderr."""

from flops_fit.cli import bench, bundles, data, sizing, training  # noqa: F401  they add their verbs
from flops_fit.cli.app import app, main

__all__ = ["app", "main"]
