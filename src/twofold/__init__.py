"""Twofold runs one image behind either wall: a container or a virtual machine."""

__version__ = "0.1.0"
