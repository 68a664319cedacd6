"""How an image is named, and in each runtime's own spelling. Pure.

Sources: github.com/NVIDIA/enroot (doc/cmd/import.md), the user guide of Apptainer ("Supported
URIs").
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

_APPTAINER_SCHEMES = ("library://", "oras://", "shub://", "docker-archive:", "oci:", "oci-archive:")
_DOCKER = "docker://"


class ImageForm(StrEnum):
    """What kind of thing a name of an image names."""

    SQUASHFS = "squashfs"
    """A file that enroot made: ``.sqsh``."""
    SIF = "sif"
    """A file or folder that Apptainer made, or a name that only Apptainer resolves."""
    REGISTRY = "registry"
    """A name in a registry."""


def form_of(image: str) -> ImageForm:
    """The form by the name alone; a path without a known suffix is a folder (a sandbox)."""
    if image.endswith((".sqsh", ".squashfs")):
        return ImageForm.SQUASHFS
    if image.endswith(".sif") or image.startswith(_APPTAINER_SCHEMES) or is_path(image):
        return ImageForm.SIF
    return ImageForm.REGISTRY


def is_path(image: str) -> bool:
    """Whether it names a file or folder of this machine."""
    return image.startswith(("/", "./", "../", "~/")) or (
        image.endswith((".sqsh", ".squashfs", ".sif")) and "://" not in image
    )


def normalise_image(image: str, *, pyxis: bool) -> str:
    """An image in the spelling of pyxis (``nvcr.io#nvidia/nemo:25.07``) or of Apptainer
    (``docker://nvcr.io/nvidia/nemo:25.07``); paths and other schemes stay as they are.

    enroot sets the registry off with ``#``; a relative path needs its ``./``.
    """
    if is_path(image):
        path = str(Path(image).expanduser()) if image.startswith("~") else image
        return path if path.startswith(("/", "./", "../")) else f"./{path}"
    if image.startswith(_APPTAINER_SCHEMES) or ("://" in image and not image.startswith(_DOCKER)):
        return image
    if pyxis:
        return _for_enroot(image)
    return _DOCKER + image.removeprefix(_DOCKER).replace("#", "/", 1)


def _for_enroot(image: str) -> str:
    image = image.removeprefix(_DOCKER)
    first, slash, rest = image.partition("/")
    is_registry = "." in first or ":" in first or first == "localhost"
    if not slash or not first or "#" in image or not is_registry:
        return image
    return f"{first}#{rest}"
