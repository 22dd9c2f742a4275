"""MNIST and CIFAR-10: the files that torchvision leaves, folders of classes, and what may not be in a pickle."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_kit import refused, save
from segaudit.data.base import Dataset
from segaudit.data.cifar10 import BATCHES, CLASS_NAMES, cifar10
from segaudit.data.mnist import mnist, read_idx

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
TRUTH = np.array([5, 0, 4, 1, 9, 2], np.uint8)
PHOTOS = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


def write_mnist(raw: Path, prefix: str = "t10k", pack: Callable[[bytes], bytes] = gzip.compress) -> tuple[Path, Path]:
    raw.mkdir(parents=True, exist_ok=True)
    end = ".gz" if pack is gzip.compress else ""
    paths = raw / f"{prefix}-images-idx3-ubyte{end}", raw / f"{prefix}-labels-idx1-ubyte{end}"
    for path, values in zip(paths, (DIGITS, TRUTH), strict=True):
        path.write_bytes(pack(idx(values)))
    return paths


def write_cifar(top: Path, labels: Any = (3, 8, 0, 9), protocol: int = 2, name: str = "test_batch") -> Path:
    data = PHOTOS.transpose(0, 3, 1, 2).reshape(4, 3072)
    path = top / "cifar-10-batches-py" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": data, "labels": list(labels), "batch_label": b"1 of 1"}, protocol))
    return path


@pytest.mark.parametrize("folder", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_mnist_is_read_from_torchvisions_files(tmp_path: Path, folder: str, pack: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path / folder, pack=pack)
    data = mnist(str(tmp_path))
    assert data.ids == tuple(f"test/{i:05}" for i in range(6))
    for i, name in enumerate(data.ids):
        image, label = data.sample(name)
        assert (image * 255).round().byte().tolist() == [DIGITS[i].tolist()]
        assert label.tolist() == [[TRUTH[i]]]
    assert pickle.loads(pickle.dumps(data)).batch(data.ids[:2]).labels.tolist() == [[[5]], [[0]]]
    assert mnist(str(tmp_path), size=[32, 32]).sample("test/00003")[0].shape == (1, 32, 32)
    assert mnist(str(tmp_path), limit=2).ids == ("test/00000", "test/00003")
    refused(lambda: mnist(str(tmp_path), "tets"), "did you mean 'test'")
    refused(lambda: mnist(str(tmp_path), "train"), "train-images-idx3-ubyte", "MNIST/raw/")


def test_mnists_faults_are_named(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path / "MNIST/raw")
    later = iter(range(1, 99))

    def faulty(path: Path, content: bytes, *parts: str) -> None:
        good = path.read_bytes()
        for text in (content, good):
            path.write_bytes(text)
            os.utime(path, (0, next(later)))
            if text is content:
                refused(lambda: mnist(str(tmp_path)).sample("test/00001"), str(path), *parts)

    faulty(labels, gzip.compress(idx(TRUTH[:5])), "5 labels", "6 images")
    faulty(labels, gzip.compress(idx(TRUTH + 10)), "image test/00001", "label 10")
    faulty(images, images.read_bytes()[:99], "damaged")
    faulty(images, gzip.compress(idx(DIGITS)[:-5]), "4699 numbers, not 6 x 28 x 28")
    faulty(images, gzip.compress(idx(TRUTH)), "3 axes")
    faulty(images, b"", "3 axes")
    faulty(images, struct.pack(">4I", 0x803, 1 << 31, 1 << 31, 4), "0 numbers, not 2147483648 x 2147483648 x 4")
    refused(lambda: read_idx(tmp_path, 3, 0), str(tmp_path), "cannot be read")
    images.rename(images.with_suffix(".GZ"))
    assert mnist(str(tmp_path)).sample("test/00004")[1].item() == 9
    labels.unlink()
    refused(lambda: mnist(str(tmp_path)), "t10k-labels-idx1-ubyte", "as torchvision")


@pytest.mark.parametrize("protocol", range(5))
def test_cifar_is_read_from_torchvisions_batches(tmp_path: Path, protocol: int) -> None:
    write_cifar(tmp_path, protocol=protocol)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = cifar10(str(root))
        assert data.ids == tuple(f"test_batch/{i:05}" for i in range(4))
        image, label = data.sample("test_batch/00001")
        assert (image * 255).round().byte().permute(1, 2, 0).tolist() == PHOTOS[1].tolist()
        assert label.tolist() == [[8]]
    refused(lambda: cifar10(str(tmp_path), "train"), "data_batch_1")
    for name in BATCHES["train"]:
        write_cifar(tmp_path, name=name)
    train = pickle.loads(pickle.dumps(cifar10(str(tmp_path), "train")))  # as a worker process gets it
    assert [train.sample(name)[1].item() for name in train.ids] == 5 * [3, 8, 0, 9]
    refused(lambda: cifar10(str(tmp_path), "val"), "no split 'val'", "train, test")


def python_2_batch() -> bytes:
    """What Python 2 wrote: text and bytes are one, and the array's bytes are such a string."""
    data = PHOTOS[:1].transpose(0, 3, 1, 2).tobytes()
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01M\x00\x0ct"
        + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )  # fmt: skip
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x06eu."


def test_cifars_own_files_of_python_2_are_read(tmp_path: Path) -> None:
    write_cifar(tmp_path).write_bytes(python_2_batch())
    image, label = cifar10(str(tmp_path)).sample("test_batch/00000")
    assert (image * 255).round().byte().permute(1, 2, 0).tolist() == PHOTOS[0].tolist()
    assert label.item() == 6


class _Calls:
    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_calls_anything_is_refused_and_not_called(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for protocol in range(5):
        for call in (_Calls(os.mkdir, str(victim)), _Calls(eval, f"__import__('os').mkdir({str(victim)!r})"),
                     _Calls(np.save, str(victim), 1), _Calls(io.open, str(victim), "w")):  # fmt: skip
            path = write_cifar(tmp_path)
            path.write_bytes(pickle.dumps({"data": call, "labels": [1]}, protocol))
            os.utime(path, (0, 10 * protocol))
            refused(lambda: cifar10(str(tmp_path)), str(path), "asks for")
            assert not victim.exists()


def forged(kind: str, inside: str = "O8") -> _Calls:
    """An array whose bytes are an address: its dtype says in its state that it holds objects, and that it does not."""
    objects = _Calls(np.dtype, inside, False, True, state=(3, "|", None, None, None, -1, -1, 0))
    dtype = _Calls(np.dtype, kind, False, True, state=(3, "|", None, ("a",), {"a": (objects, 0)}, 8, 1, 0))
    shape = (8,) if inside == "u1" else (1,)
    reconstruct = np.empty(0).__reduce__()[0]
    return _Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, b"\x08" + bytes(7)))


def test_a_pickle_can_neither_forge_an_array_nor_read_memory(tmp_path: Path) -> None:
    rows = np.zeros((1, 3072), np.uint8)
    change = b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__(U\x01atsU\x08__name__U\x01as\x86b."
    for i, (content, part) in enumerate((
        (pickle.dumps({"data": _Calls(np.ndarray, (1, 3072), "u1"), "labels": [1]}), "not a batch"),
        (pickle.dumps({"data": _Calls(np.dtype, "u1", False, True), "labels": [1]}), "3072 an image"),
        (pickle.dumps({"data": rows, "labels": [forged("O8")]}), "not bytes"),
        (pickle.dumps({"data": rows, "labels": [forged("u1", "u1")]}), "image 0 has the label of type"),
        (pickle.dumps({"data": forged("u1", "u1"), "labels": [1]}), "3072 an image"),
        (change, "it changes"),
        (pickle.dumps({"data": rows, "labels": [forged("V8")]}), "not bytes"),
    )):  # fmt: skip
        path = write_cifar(tmp_path)
        path.write_bytes(content)
        os.utime(path, (0, i))
        refused(lambda: cifar10(str(tmp_path)), str(path), part)


def test_cifars_faults_are_named(tmp_path: Path) -> None:
    path = write_cifar(tmp_path)
    rows = np.zeros((2, 3072), np.uint8)
    for i, (content, part) in enumerate((
        (pickle.dumps({"data": rows, "labels": [1]}), "a label for each of its 2 images"),
        (pickle.dumps({"data": rows, "labels": [1, 10]}), "image 1 has the label 10"),
        (pickle.dumps({"data": rows, "labels": [1, -1]}), "image 1 has the label -1"),
        (pickle.dumps({"data": rows, "labels": [1, 10**5000]}), "image 1 has the label of type int"),
        (pickle.dumps({"data": rows, "labels": [1, "1\n"]}), "image 1 has the label of type str"),
        (pickle.dumps({"data": rows[:, :1024], "labels": [1, 1]}), "3072 an image"),
        (pickle.dumps({"data": rows.astype(float), "labels": [1, 1]}), "not bytes"),
        (pickle.dumps({"data": rows, "fine_labels": [1, 1]}), "'labels'"),
        (pickle.dumps([rows]), "not a batch"),
        (path.read_bytes()[:500], "not a batch"),
        (b"", "not a batch"),
    )):  # fmt: skip
        path.write_bytes(content)
        os.utime(path, (0, i))
        refused(lambda: cifar10(str(tmp_path)), str(path), part)
    refused(lambda: cifar10(str(tmp_path / "none")), "none", "cifar-10-batches-py")


@pytest.mark.parametrize(("load", "classes"), [(mnist, tuple("0123456789")), (cifar10, CLASS_NAMES)])
def test_folders_of_classes_are_read(tmp_path: Path, load: Callable[..., Dataset], classes: tuple[str, ...]) -> None:
    for name in (f"{classes[9]}/b.png", f"{classes[0]}/x.JPG", f"{classes[3]}/deep/a.png"):
        save(tmp_path / "test" / name, PHOTOS[0])
    data = load(str(tmp_path))
    assert data.class_names == classes
    found = {name: data.sample(name) for name in data.ids}
    assert {name: label.item() for name, (_, label) in found.items()} == {
        f"{classes[0]}/x": 0, f"{classes[3]}/deep/a": 3, f"{classes[9]}/b": 9
    }  # fmt: skip
    pixels = (found[f"{classes[9]}/b"][0] * 255).round().byte().permute(1, 2, 0)
    if load is cifar10:
        assert pixels.tolist() == PHOTOS[0].tolist()
    else:
        grey = (PHOTOS[0] @ np.array([0.299, 0.587, 0.114]))[:, :, None]
        assert np.abs(pixels.numpy() - grey).max() <= 1
    before = data.digest()
    (tmp_path / "test" / f"{classes[0]}/x.JPG").rename(tmp_path / "test" / f"{classes[3]}/x.jpg")
    assert load(str(tmp_path)).digest() != before
    strange = tmp_path / "test" / f"{classes[3]}s" / "y.png"
    save(strange, PHOTOS[0])
    refused(lambda: load(str(tmp_path)), str(strange), "no class's folder", ", ".join(classes))
    strange.rename(tmp_path / "test/y.png")
    refused(lambda: load(str(tmp_path)), "test/y.png", "no class's folder")
    refused(lambda: load(str(tmp_path), "train"), "holds the folders test", "SPLIT/")
    (tmp_path / "train").mkdir()
    refused(lambda: load(str(tmp_path), "train"), "no images", "train")
