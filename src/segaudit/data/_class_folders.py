"""Images in a folder for each class: a classifier's data, whose labels are 1 x 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segaudit.data.base import IMAGE_SUFFIXES, Dataset, colours, files_by_stem, read_image
from segaudit.data.files import open_picture
from segaudit.registry import suggest
from segaudit.types import UserError


class ClassFolders(Dataset):
    """The images under `top/CLASS/`; an id is `CLASS/NAME`. grey: one channel, else RGB.

    Raises UserError for an image in no folder, or in one of another name than a class.
    """

    image_labels = True

    def __init__(
        self,
        top: Path,
        class_names: tuple[str, ...],
        *,
        grey: bool = False,
        size: Sequence[int] | None,
        limit: int | None,
        only: Sequence[str] | None,
    ) -> None:
        self.class_names, self.palette = class_names, colours(len(class_names))
        self.files, self.grey = files_by_stem(top), grey
        if not self.files:
            raise UserError(f"there are no images ({', '.join(IMAGE_SUFFIXES)}) in the folders of {top}")
        for name, path in self.files.items():
            folder, _, rest = name.partition("/")
            if not rest or folder not in class_names:
                near = suggest(folder, class_names) if rest else ""
                raise UserError(f"{path}: this is in no class's folder{near}; they are: {', '.join(class_names)}")
        super().__init__(self.files, size=size, limit=limit, only=only)

    def where(self, image_id: str) -> str:
        """The file."""
        return str(self.files[image_id])

    def digest(self) -> str:
        """Of the files and their folders."""
        return self.digest_of((self.files[name] for name in self.ids), self.ids, self.grey)

    def read(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image H x W x 3, or x 1, and its class 1 x 1."""
        path = self.files[image_id]
        image = np.asarray(open_picture(path).convert("L"))[:, :, None] if self.grey else read_image(path)
        return image, np.array([[self.class_names.index(image_id.partition("/")[0])]], np.uint8)
