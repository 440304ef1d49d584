"""Evaluate a pool on ImageNet and five shifts, cook soups from it, and set them beside the published ones."""

from soups.experiments.imagenet_soups.run import run as run
