"""Broken and hostile bundles by class: each is loaded and asked in a process of its own, with bounded memory.

A bundle passes if an EarnError refuses it, or if it answers with the lists of the bundle that it was made from, within
MOST_SECONDS and MOST_BYTES. Where a class renews the manifest's sums after the change, the changed content is what the
manifest vouches for: other lists are then right, too, as long as all scores are finite.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: F401  loaded before the processes part

from earn.errors import EarnError
from earn.manifest import FileEntry
from earn.places import pack
from earn.runtime.recommender import Recommender

MOST_SECONDS, MOST_BYTES = 2.0, 500 << 20
PATIENCE = 20  # seconds after which a process is ended
HISTORIES = (["1", "2", "3"], ["7"], ["40", "11"])
GRAPHS = ("early.onnx", "late.onnx")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 10**9, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../x", "a\0b", [], {}),
    *([-1], [[]], [10**9], ["x"], {"x": 1}),
)
ODD_SIZES = (-(2**63), -(2**31), -2, -1, 0, 1, 3, 2**20, 2**29, 2**31, 2**40, 2**62)
FOREIGN = ("Loop", "If", "Scan", "RandomNormal", "NonZero", "Mod", "BitShift", "ConstantOfShape", "Tile", "Einsum")

Change = Callable[[Path, random.Random], Path]  # changes a bundle's folder; gives the path to load


@dataclass(frozen=True)
class Kind:
    """A class of bad bundles."""

    says: str
    count: int
    change: Change
    renews_sums: bool = False


def lists(recommender: Recommender) -> list[list[tuple[str, float]]]:
    """What a recommender answers."""
    return [[(item.item_id, item.score) for item in recommender.recommend(history, 5)] for history in HISTORIES]


def renew(folder: Path, *names: str) -> Path:
    """Writes the sums of changed files into the manifest."""
    value = json.loads((folder / "manifest.json").read_text())
    for name in names:
        entry = FileEntry.of(folder / name)
        value["files"][name] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (folder / "manifest.json").write_text(json.dumps(value))
    return folder


def _file(folder: Path, chance: random.Random) -> Path:
    return folder / chance.choice(sorted(path.name for path in folder.iterdir()))


def _flip(path: Path, chance: random.Random, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(bits):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def flipped(folder: Path, chance: random.Random) -> Path:
    """One bit of one file."""
    _flip(_file(folder, chance), chance)
    return folder


def cut(folder: Path, chance: random.Random) -> Path:
    """One file ends early."""
    _cut(_file(folder, chance), chance)
    return folder


def mixed_up(folder: Path, chance: random.Random) -> Path:
    """A file is missing, another one, a folder, a link in a circle, or a link to a file outside."""
    path, other = _file(folder, chance), _file(folder, chance)
    content = other.read_bytes()
    path.unlink()
    way = chance.randrange(5)
    if way == 1:
        path.write_bytes(content if other != path else b"")
    elif way == 2:
        path.mkdir()
    elif way == 3:
        path.symlink_to(path.name)
    elif way == 4:
        path.symlink_to("/etc/passwd")
    return folder


def other_manifest(folder: Path, chance: random.Random) -> Path:
    """A value of the manifest is an odd one, is missing, or stands beside an unknown one."""
    value = json.loads((folder / "manifest.json").read_text())
    inner, key = value, chance.choice(sorted(value))
    while isinstance(inner[key], (dict, list)) and inner[key] and chance.random() < 0.8:
        inner = inner[key]
        key = chance.choice(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
    way = chance.random()
    if way < 0.1:
        del inner[key]
    elif way < 0.2 and isinstance(inner, dict):
        inner["other"] = inner[key]
    else:
        inner[key] = chance.choice(ODD_VALUES)
    (folder / "manifest.json").write_text(json.dumps(value))
    return folder


def other_manifest_text(folder: Path, chance: random.Random) -> Path:
    """Bytes of the manifest are others, stand twice, or are missing."""
    path = folder / "manifest.json"
    data = path.read_bytes()
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice((1, 2, 8, 64, 512)))
    new = chance.choice((b"", data[start:end] * 2, b"\xff", b"\\ud800", b"[" * 5000, b"9" * 5000, b"{", b'"', b"\0"))
    path.write_bytes(data[:start] + new + data[end:])
    return folder


def other_catalog(folder: Path, chance: random.Random) -> Path:
    """An array of the catalog holds other bytes, is of another form, or its archive is damaged."""
    path = folder / "catalog.npz"
    if chance.random() < 0.4:
        _flip(path, chance, chance.choice((1, 8)))
        return renew(folder, path.name)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    name = chance.choice(sorted(arrays))
    array = arrays[name].copy()
    changes: Sequence[Callable[[], Any]] = (
        lambda: array[: chance.randrange(len(array))],
        lambda: array.astype(chance.choice(("f8", "i8", "u1", "U3"))),
        lambda: array.reshape(-1, 1, 1),
        lambda: np.concatenate([array, array]),
        lambda: np.array([pow], dtype=object),
    )
    if chance.random() < 0.5:
        array.flat[chance.randrange(array.size)] = chance.choice((0, 1, 10, 99, 255))
        arrays[name] = array
    else:
        arrays[name] = chance.choice(changes)()
    np.savez(path, **arrays)
    return renew(folder, path.name)


def flipped_graph(folder: Path, chance: random.Random) -> Path:
    """Bits of a graph, with sums to fit."""
    name = chance.choice(GRAPHS)
    _flip(folder / name, chance, chance.choice((1, 4, 64)))
    return renew(folder, name)


def cut_graph(folder: Path, chance: random.Random) -> Path:
    """A graph ends early, with sums to fit."""
    name = chance.choice(GRAPHS)
    _cut(folder / name, chance)
    return renew(folder, name)


def other_graph(folder: Path, chance: random.Random) -> Path:
    """A node, an attribute, a whole number or a shape of a graph is another one, with sums to fit."""
    path = folder / chance.choice(GRAPHS)
    model = onnx.load(path)
    nodes, tensors = model.graph.node, model.graph.initializer
    node, way = chance.choice(nodes), chance.randrange(7)
    if way == 0:
        nodes.remove(node)
    elif way == 1:
        node.op_type = chance.choice([*FOREIGN, *{other.op_type for other in nodes}])
    elif way == 2 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice([*chance.choice(nodes).output, ""])
    elif way == 3:
        attributes = [each for other in nodes for each in other.attribute if each.type in (1, 2, 7)]
        attribute = chance.choice(attributes)
        if attribute.type == 1:
            attribute.f = chance.choice((0.0, -1.0, float("nan"), 1e38))
        elif attribute.type == 2:
            attribute.i = chance.choice(ODD_SIZES)
        else:
            attribute.ints[:] = [chance.choice(ODD_SIZES) for _ in range(chance.randrange(5))]
    elif way == 4:
        _other_number(tensors, onnx.TensorProto.INT64, ODD_SIZES, chance)
    elif way == 5:
        tensor = chance.choice(tensors)
        tensor.dims[:] = [chance.choice(ODD_SIZES) for _ in tensor.dims]
    else:
        _other_number(tensors, onnx.TensorProto.FLOAT, (np.nan, np.inf, -np.inf, 1e38, 0), chance)
    path.write_bytes(model.SerializeToString())
    return renew(folder, path.name)


def _other_number(tensors: Any, data_type: int, values: Sequence[float], chance: random.Random) -> None:
    tensor = chance.choice([each for each in tensors if each.data_type == data_type])
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[chance.randrange(array.size)] = chance.choice(values)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def outside_weights(folder: Path, chance: random.Random) -> Path:
    """A graph takes weights from a file that is not the bundle's."""
    path = folder / chance.choice(GRAPHS)
    model = onnx.load(path)
    tensor = chance.choice(model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    place = chance.choice(("/etc/passwd", "../../etc/passwd", "manifest.json", "absent", "", "/dev/zero", "/dev/stdin"))
    for key, value in (("location", place), ("offset", "0"), ("length", str(chance.choice((0, 4, 2**40))))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    return renew(folder, path.name)


def bomb(folder: Path, chance: random.Random) -> Path:
    """A little file that claims or unpacks to much."""
    way = chance.randrange(6)
    if way == 0:  # a catalog of a gigabyte of line breaks
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
            header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824,), }"
            head = b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n"
            with archive.open("titles.npy", "w") as member:
                member.write(head)
                for _ in range(16):
                    member.write(bytes(64 << 20))
        (folder / "catalog.npz").write_bytes(memory.getvalue())
        return renew(folder, "catalog.npz")
    if way == 1:  # an array whose header claims terabytes
        with np.load(folder / "catalog.npz") as file:
            arrays = {name: file[name] for name in file}
        shape = f"({10**12},)"
        with zipfile.ZipFile(folder / "catalog.npz", "w") as archive:
            for name, array in arrays.items():
                memory = io.BytesIO()
                np.save(memory, array)
                content = memory.getvalue()
                archive.writestr(f"{name}.npy", content.replace(f"({len(array)},)".encode(), shape.encode()))
        return renew(folder, "catalog.npz")
    if way == 2:  # a manifest of deep brackets or of many megabytes
        deep = chance.choice((b'{"a":' * 10**6, b"[" * (65 << 20), b" " * (63 << 20) + b"{}", b"1" * (1 << 20)))
        (folder / "manifest.json").write_bytes(deep)
        return folder
    if way == 3:  # a graph of nodes in nodes
        inner = b""
        for _ in range(2000):
            inner = _message(7, _message(1, _message(5, _message(6, inner))))
        name = chance.choice(GRAPHS)
        (folder / name).write_bytes(inner)
        return renew(folder, name)
    if way == 4:  # a graph of a million nodes
        name = chance.choice(GRAPHS)
        (folder / name).write_bytes(_message(7, _message(1, _message(4, b"Identity")) * 10**6))
        return renew(folder, name)
    packed = folder.with_name("packed.zip")  # a packed bundle whose member unpacks to a gigabyte
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("manifest.json", "w") as member:
        for _ in range(16):
            member.write(bytes(64 << 20))
    return packed


def _message(number: int, content: bytes) -> bytes:
    """A field of a protobuf that holds bytes."""
    size, length = bytearray(), len(content)
    while length >= 0x80:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


def damaged_pack(folder: Path, chance: random.Random) -> Path:
    """A packed bundle with other bits, or cut."""
    packed = folder.with_name("packed.zip")
    pack(folder, packed)
    _flip(packed, chance, 3) if chance.random() < 0.7 else _cut(packed, chance)
    return packed


KINDS: Mapping[str, Kind] = {
    "bit": Kind("one bit of a file flipped", 80, flipped),
    "cut": Kind("a file cut short", 50, cut),
    "mixed": Kind("a file missing, swapped, a folder, a link", 40, mixed_up),
    "manifest": Kind("values of the manifest", 150, other_manifest),
    "text": Kind("the manifest's text", 80, other_manifest_text),
    "catalog": Kind("the catalog's arrays, sums renewed", 60, other_catalog, renews_sums=True),
    "graph bits": Kind("bits of a graph, sums renewed", 80, flipped_graph, renews_sums=True),
    "graph cut": Kind("a graph cut short, sums renewed", 30, cut_graph, renews_sums=True),
    "graph": Kind("nodes, attributes, numbers of a graph, sums renewed", 200, other_graph, renews_sums=True),
    "outside": Kind("weights from other files, sums renewed", 20, outside_weights, renews_sums=True),
    "bomb": Kind("bombs", 24, bomb, renews_sums=True),
    "packed": Kind("a packed bundle, damaged", 40, damaged_pack),
}


def run(bundle: Path, work: Path, seed: int) -> dict[str, Any]:
    """Tries all kinds; per kind what came of it, and the worst time and memory."""
    want = _apart(bundle, [])["lists"]
    found = {}
    for name, kind in KINDS.items():
        outcomes: Counter[str] = Counter()
        seconds, used, faults = [], [], []
        for index in range(kind.count):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            folder = Path(shutil.copytree(bundle, work / "bundle"))
            path = kind.change(folder, random.Random(f"{seed} {name} {index}"))
            result = _apart(path, want)
            outcome = result["outcome"]
            is_good = outcome in ("refused", "right") or (outcome == "other lists" and kind.renews_sums)
            if not is_good or result["seconds"] > MOST_SECONDS or result["bytes"] > MOST_BYTES:
                cost = f"{result['seconds']:.1f} s, {result['bytes'] >> 20} MiB"
                faults.append(f"{name} {index}: {outcome}, {cost}, {result['says']}")
            outcomes[outcome] += 1
            seconds.append(result["seconds"])
            used.append(result["bytes"])
        found[name] = {"outcomes": dict(outcomes), "seconds": max(seconds), "bytes": max(used), "faults": faults}
    return found


def _apart(path: Path, want: Sequence[Any]) -> dict[str, Any]:
    """Loads a bundle and asks it in a process of its own."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        try:
            os.write(sink, json.dumps(_tried(path, want)).encode())
        finally:
            os._exit(0)
    os.close(sink)
    started = time.monotonic()
    gone, status = 0, 0
    while not gone:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if not gone and time.monotonic() - started > PATIENCE:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    with os.fdopen(source, "rb") as file:
        said = file.read()
    lost = {"outcome": "ended", "seconds": time.monotonic() - started, "bytes": 0, "says": f"status {status}"}
    result: dict[str, Any] = json.loads(said) if said else lost
    return result


def _tried(path: Path, want: Sequence[Any]) -> dict[str, Any]:
    """What comes of loading a bundle and asking it; with little more memory than the process has."""
    before = _memory()
    most = before["VmSize"] + MOST_BYTES + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    started, says, answer = time.monotonic(), "", None
    try:
        answer = lists(Recommender.load(path, threads=1))
        is_finite = all(isfinite(score) for items in answer for _, score in items)
        outcome = "not finite" if not is_finite else "right" if _same(answer, want) else "other lists"
    except EarnError as error:
        outcome, says = "refused", str(error)
    except BaseException as error:
        outcome, says = type(error).__name__, str(error)
    seconds = time.monotonic() - started
    used = _memory()["VmHWM"] - before["VmRSS"]
    return {"outcome": outcome, "says": says[:200], "seconds": seconds, "bytes": used, "lists": answer}


def _same(answer: Sequence[Any], want: Sequence[Any]) -> bool:
    return [[item for item, _ in items] for items in answer] == [[item for item, _ in items] for items in want]


def _memory() -> dict[str, int]:
    """This process's memory in bytes, as Linux counts it."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name[:-1]: int(number) << 10 for name, number, *_ in (line for line in lines if line[-1:] == ["kB"])}
