"""`earn inspect`: what a bundle or a checkpoint holds. Needs no engine, and reads no weight.

of a bundle        model, limits, files, and the size of its cache next to a dense model's; --verify: what loading
                   checks, one line per check, and whether the bundle then answers
of a checkpoint    what it is, what would be read, and what stands in the way of loading it
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earn.catalog import CATALOG_FILE, Catalog
from earn.cli.arguments import Subparsers, command, option
from earn.cli.catalog import WITHDRAWN, catalog_facts
from earn.config import BEAMS as ONE_BY_ONE
from earn.config import SCORING_RULES, SET
from earn.console import pairs, show, show_json, size
from earn.errors import EarnError
from earn.manifest import MANIFEST_FILE, Manifest, check_graphs
from earn.places import bundle_at, opened
from earn.runtime.engine_files import HARDWARE, has_engines, load_record

if TYPE_CHECKING:
    from earn.model.checkpoint_facts import CheckpointFacts, TokenizerFacts

BEAMS = 20  # of the search that the cache is computed for
METHODS = {ONE_BY_ONE: "one code after the other, by beam search", SET: "all codes at once, every item scored"}
DETERMINED_AFTER = (1, 2, 3)  # tokens
PASSED = "passed"  # what --verify says of a check
MARKS = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
TIED = {
    True: "the head is the embedding's table (tied)",
    False: "the head has a table of its own",
    None: "the files hold a head that config.json ties: on loading it counts as its own where it differs",
}


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "inspect",
        run,
        "show what a bundle or a checkpoint holds",
        "Checks a bundle's files against its manifest and shows model, prompt, limits, cache, files and item trie. "
        "Of a checkpoint it shows model, tokenizer and identifier tokens, and lists all that stands in the way of "
        "loading it; weights are not read. The exit status is 1 if something does.",
        """
        earn inspect BUNDLE
        earn inspect BUNDLE --verify
        earn inspect models/Qwen3-0.6B --json
        """,
    )
    folders = "of earn export, earn train or earn pack, hf://org/name, a Hugging Face folder, or a GGUF file"
    option(parser, "folder FOLDER", folders)
    verify = "of a bundle: check all that loading checks, and let it answer; the exit status is 1 if something fails"
    option(parser, "--verify", verify, bool)
    option(parser, "--json", "print one JSON object instead of a table", bool)


def run(args: argparse.Namespace) -> int:
    """Describes the bundle or checkpoint, or verifies the bundle."""
    path = Path(args.folder)
    if not (path / MANIFEST_FILE).is_file() and is_checkpoint(path):
        return _inspect_checkpoint(path, args.json)
    if args.verify:
        checks = verify(args.folder)
        is_good = set(checks.values()) == {PASSED}
        show_json({"passed": is_good, "checks": checks}) if args.json else show(pairs([*checks.items()]))
        return 0 if is_good else 1
    facts = opened(args.folder, describe)
    show_json(facts) if args.json else show(_text(facts))
    return 0


def describe(folder: Path) -> dict[str, Any]:
    """The facts of a bundle, and of the TensorRT engines that were built from it."""
    manifest, catalog = Manifest.load(folder), Catalog.load(folder / CATALOG_FILE)
    model = manifest.model
    return {
        "sizes": asdict(manifest.sizes),
        "registers": {"prefix": len(model.prefix_ids), "suffix": len(model.suffix_ids)},
        "prompt": {part: len(tokens) for part, tokens in asdict(model.prompt).items()}
        | {"max_history": model.max_history},
        "method": model.method,
        "scoring": manifest.scoring,
        "precision": manifest.precision,
        "calibration": manifest.calibration,
        "accuracy": manifest.accuracy,
        "limits": asdict(manifest.limits),
        "cache_bytes": _cache_bytes(manifest),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "bundle_bytes": manifest.bundle_bytes,
        "engines": asdict(load_record(folder)) if has_engines(folder) else None,
        "tools": dict(manifest.tools),
        "trie": _trie(catalog),
        "catalog": catalog_facts(manifest, catalog),
    }


def _cache_bytes(manifest: Manifest) -> dict[str, int]:
    """Cache of a full prompt and 20 beams, of this bundle and of a dense model of the same sizes."""
    from earn.runtime.cache import cache_bytes

    sizes, limits, model = manifest.sizes, manifest.limits, manifest.model
    beams = min(BEAMS, limits.beams)
    # A dense model's prompt has BOS in the place of the prefix registers, and no suffix registers.
    prompt = limits.prompt - len(model.suffix_ids) - max(0, len(model.prefix_ids) - 1)
    dense = replace(sizes, early_layers=sizes.layers)
    return {
        "beams": beams,
        "prompt": limits.prompt,
        "bundle": cache_bytes(sizes, limits, limits.prompt, beams),
        "dense": cache_bytes(dense, limits, prompt, beams),
    }


def _trie(catalog: Catalog) -> dict[str, Any]:
    trie = catalog.trie
    nodes = np.arange(len(trie))
    level, is_leaf = trie.level(nodes), trie.is_leaf(nodes)
    shares = {}
    for tokens in DETERMINED_AFTER:
        at_end = (level == min(tokens, trie.depth)) | (is_leaf & (level < tokens))  # some identifiers have ended before
        named = trie.below[at_end & (trie.determined(nodes) >= 0)].sum()
        shares[f"{tokens}"] = float(named / len(catalog))
    return {
        "items": len(catalog),
        "identifiers": int(is_leaf.sum()),
        "nodes": len(trie),
        "depth": trie.depth,
        "determined_after": shares,
    }


def _text(facts: dict[str, Any]) -> str:
    """Names and values; what has no name goes on with the line above."""
    sizes, registers, prompt, limits = (facts[key] for key in ("sizes", "registers", "prompt", "limits"))
    cache, trie, catalog = facts["cache_bytes"], facts["trie"], facts["catalog"]
    texts = ", ".join(f"{prompt[part]} {part}" for part in ("head", "separator", "tail"))
    files = [f"{name}, {size(count)}" for name, count in facts["files"].items()]
    files.append(f"together {size(facts['bundle_bytes'])}")
    shares = ", ".join(f"{share:.0%} after {tokens}" for tokens, share in trie["determined_after"].items())
    rows = [
        ("backbone", f"{sizes['family']}, {sizes['layers']} layers, hidden size {sizes['hidden']}"),
        (
            "",
            f"{sizes['heads']} heads, {sizes['key_value_heads']} of keys and values, {sizes['head_size']} numbers each",
        ),
        ("", f"{sizes['embedding_rows']:,} token embeddings, {sizes['logits']:,} logits"),
        ("split", f"k = {sizes['early_layers']} of {sizes['layers']} layers see every token"),
        ("registers", f"{registers['prefix']} prefix, {registers['suffix']} suffix"),
        ("prompt", f"the newest {prompt['max_history']} items; tokens of text: {texts}"),
        ("method", METHODS[facts["method"]]),
        ("scoring", f"{facts['scoring']}: over {SCORING_RULES[facts['scoring']].meaning}"),
        *_precision_rows(facts),
        ("limits", f"{limits['batch']} users per pass, {limits['beams']} beams, {limits['prompt']} tokens of prompt"),
        ("cache", f"{size(cache['bundle'])} at {cache['prompt']} prompt tokens and {cache['beams']} beams"),
        ("", f"{size(cache['dense'])} if it were dense, {cache['dense'] / cache['bundle']:.1f} times as much"),
        *(("" if index else "files", file) for index, file in enumerate(files)),
        *_engine_rows(facts["engines"]),
        ("written by", ", ".join(f"{name} {version}" for name, version in facts["tools"].items())),
        ("catalog", f"version {catalog['version']}, {len(catalog['kept'])} earlier ones kept"),
        ("", ", ".join(f"{catalog[name]:,} {name}" for name in ("items", *WITHDRAWN))),
        ("trie", f"{trie['items']:,} items, {trie['identifiers']:,} identifiers, {trie['nodes']:,} nodes"),
        ("", f"identifiers of up to {trie['depth']} tokens; determined are {shares} of them"),
    ]
    return pairs(rows)


def _precision_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The precision, and for a calibrated bundle what the gate found."""
    how, gate = facts["calibration"], facts["accuracy"]
    if not how or not gate:
        return [("precision", facts["precision"])]
    parts = {"refined": how["fine_products"], "in float": how["float_layers"]}
    special = "".join(f"; {name}: {', '.join(values)}" for name, values in parts.items() if values)
    opening = "passes the gate" if gate["passed"] else "GATE FAILED, written all the same"
    stay = f"{gate['beam_set_overlap']:.1%} of the best {gate['beam_set']} items stay, over {gate['users']} users"
    before, after = gate["ndcg@10"]["before"], gate["ndcg@10"]["after"]
    return [
        ("precision", f"{facts['precision']} for {how['engine']}{special}"),
        ("", f"{opening}: {stay} (wanted {gate['limits']['beam_set_overlap']:.1%})"),
        ("", f"NDCG@10 {before:.4f} in fp32, {after:.4f} here"),
    ]


def _engine_rows(record: dict[str, Any] | None) -> list[tuple[str, str]]:
    """TensorRT engines, where somebody built them."""
    if record is None:
        return []
    together = size(sum(entry["bytes"] for entry in record["files"].values()))
    return [
        ("engines", f"TensorRT {record['tensorrt']}, {together}, for {HARDWARE[record['hardware']].meaning}"),
        ("", f"built on {record['gpu']}, architecture {record['architecture']}, CUDA {record['driver']}"),
    ]


def verify(place: str) -> dict[str, str]:
    """PASSED for each of CHECKS, or what it found; those behind the first that fails are left out."""
    found: dict[str, str] = {}
    name = "place"
    try:
        with bundle_at(place) as folder:
            for name, check in CHECKS.items():  # name is that of the check which fails
                check(folder)
                found[name] = PASSED
    except EarnError as error:
        found[name] = str(error)
    return found


def _answer(folder: Path) -> None:
    """Loads the bundle, which answers a request with finite scores."""
    from earn.runtime.recommender import Recommender

    recommender = Recommender.load(folder, verify=False)
    recommender.recommend(recommender.catalog.item_ids[:1], k=1)


# Checks of --verify, in order: each raises an EarnError.
CHECKS: Mapping[str, Callable[[Path], object]] = {
    "manifest": lambda folder: Manifest.load(folder, verify=False),  # its form, limits and the files' sizes
    "sums": Manifest.load,
    "graphs": lambda folder: check_graphs(folder, Manifest.load(folder, verify=False)),  # only what this package writes
    "catalog": lambda folder: Catalog.load(folder / CATALOG_FILE),
    "answer": _answer,
}


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a checkpoint: a GGUF file, or a folder with a file of one."""
    if path.is_dir():
        return any(True for mark in MARKS for _ in path.glob(mark))
    return path.suffix == ".gguf" and path.is_file()


def _inspect_checkpoint(path: Path, as_json: bool) -> int:
    """Describes the checkpoint; 1 if something stands in the way of loading it."""
    from earn.model.checkpoint_facts import checkpoint_facts

    facts = checkpoint_facts(path)
    show_json(asdict(facts)) if as_json else show(_checkpoint_text(facts))
    return 1 if facts.obstacles else 0


def _checkpoint_text(facts: CheckpointFacts) -> str:
    rows = [("kind", facts.kind), *_model_rows(facts), *_tokenizer_rows(facts.tokenizer)]
    if facts.items is not None:
        rows.append(("catalog", f"{facts.items:,} items"))
    obstacles = [" ".join(obstacle.split()) for obstacle in facts.obstacles]
    rows += [("" if index else "in the way", obstacle) for index, obstacle in enumerate(obstacles or ["nothing"])]
    return pairs(rows)


def _model_rows(facts: CheckpointFacts) -> Iterator[tuple[str, str]]:
    """Names and values; what has no name goes on with the line above."""
    sizes = facts.sizes
    if sizes is None:
        yield "backbone", facts.family or "unknown"
    else:
        yield "backbone", f"{sizes.family}, {sizes.layers} layers, hidden size {sizes.hidden}"
        yield "", f"{sizes.heads} heads, {sizes.key_value_heads} of keys and values, {sizes.head_size} numbers each"
        yield "", f"{sizes.embedding_rows:,} token embeddings; {TIED[facts.tied]}"
        yield "", f"{facts.positions:,} positions"
    if facts.padding_rows:
        yield "padding", f"{facts.padding_rows:,} rows stand behind the tokenizer's last id; new tokens take them first"
    if facts.parameters is not None:
        types = ", ".join(f"{dtype} ({count} weights)" for dtype, count in facts.dtypes.items())
        yield "weights", f"{facts.parameters / 1e6:,.2f} million numbers: {types}"
        files = facts.weight_files
        yield "", f"read from {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    if sizes is not None:
        by_default = "" if facts.kind == "EARN checkpoint" else " by default"
        yield "split", f"k = {sizes.early_layers} of {sizes.layers} layers see every token{by_default}"


def _tokenizer_rows(tokenizer: TokenizerFacts | None) -> Iterator[tuple[str, str]]:
    if tokenizer is None:
        yield "tokenizer", "none that can be read: prompts are identifiers alone"
        return
    chat = "with a chat template" if tokenizer.has_chat_template else "without a chat template"
    yield "tokenizer", f"{tokenizer.kind}, {tokenizer.tokens:,} tokens, {chat}"
    known = tokenizer.identifiers
    if known is None:
        yield "identifiers", "none of a known form; training adds those of the data"
        return
    levels = ", ".join(f"{level.name}: {level.codes:,} up to {level.highest:,}" for level in known.levels)
    yield "identifiers", f"learned: {known.form} on {len(known.levels)} levels ({levels})"
    if known.wrapper:
        yield "", f"each item between {' and '.join(known.wrapper)}"
