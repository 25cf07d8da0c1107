"""`earn inspect`: what a bundle holds, and the size of its cache next to a dense model's. Needs no engine."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from earn.cli.arguments import bundle_folder, command
from earn.config import SCORING_RULES
from earn.console import pairs, show, show_json, size
from earn.runtime.engine_files import HARDWARE

if TYPE_CHECKING:
    from earn.catalog import Catalog
    from earn.cli.arguments import Subparsers
    from earn.manifest import Manifest
    from earn.runtime.engine_files import EngineRecord

BEAMS = 20  # of the search that the cache is computed for
DETERMINED_AFTER = (1, 2, 3)  # tokens


def add_parser(subparsers: Subparsers) -> None:
    """Declares the command."""
    parser = command(
        subparsers,
        "inspect",
        run,
        "show what a bundle holds",
        "Checks a bundle's files against its manifest and shows model, prompt, limits, cache, files and item trie.",
        """
        earn inspect BUNDLE
        earn inspect BUNDLE --json
        """,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help="folder of earn export")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Describes the bundle."""
    from earn.catalog import CATALOG_FILE, Catalog
    from earn.manifest import Manifest
    from earn.runtime.engine_files import has_engines, load_record

    manifest = Manifest.load(args.bundle)
    record = load_record(args.bundle) if has_engines(args.bundle) else None
    facts = describe(manifest, Catalog.load(args.bundle / CATALOG_FILE), record)
    show_json(facts) if args.json else show(_text(facts))
    return 0


def describe(manifest: Manifest, catalog: Catalog, record: EngineRecord | None = None) -> dict[str, Any]:
    """The facts of a bundle, and of the TensorRT engines that were built from it."""
    model = manifest.model
    return {
        "sizes": asdict(manifest.sizes),
        "registers": {"prefix": len(model.prefix_ids), "suffix": len(model.suffix_ids)},
        "prompt": {part: len(tokens) for part, tokens in asdict(model.prompt).items()}
        | {"max_history": model.max_history},
        "scoring": manifest.scoring,
        "precision": manifest.precision,
        "calibration": manifest.calibration,
        "accuracy": manifest.accuracy,
        "limits": asdict(manifest.limits),
        "cache_bytes": _cache_bytes(manifest),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "bundle_bytes": manifest.bundle_bytes,
        "engines": asdict(record) if record else None,
        "tools": dict(manifest.tools),
        "trie": _trie(catalog),
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
    from earn.runtime.trie import ItemTrie

    trie = ItemTrie.build(catalog.codes)
    shares = {}
    for tokens in DETERMINED_AFTER:
        node = trie.path[:, min(tokens, trie.depth) - 1]
        is_determined = (node < 0) | (trie.determined[node] >= 0)  # -1: the identifier has ended before
        shares[f"{tokens}"] = float(is_determined.mean())
    return {
        "items": len(catalog),
        "identifiers": len(set(catalog.identifiers)),
        "nodes": len(trie),
        "depth": trie.depth,
        "determined_after": shares,
    }


def _text(facts: dict[str, Any]) -> str:
    files = [f"{name}, {size(count)}" for name, count in facts["files"].items()]
    return pairs(
        [
            *_model_rows(facts),
            *_cache_rows(facts["cache_bytes"]),
            *_listed("files", [*files, f"together {size(facts['bundle_bytes'])}"]),
            *_engine_rows(facts["engines"]),
            ("written by", ", ".join(f"{name} {version}" for name, version in facts["tools"].items())),
            *_trie_rows(facts["trie"]),
        ]
    )


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    sizes, registers, prompt, limits = (facts[key] for key in ("sizes", "registers", "prompt", "limits"))
    heads = f"{sizes['heads']} heads, {sizes['key_value_heads']} of keys and values"
    parts = ", ".join(f"{prompt[part]} {part}" for part in ("head", "separator", "tail"))
    return [
        ("backbone", f"{sizes['family']}, {sizes['layers']} layers, hidden size {sizes['hidden']}"),
        ("", f"{heads}, {sizes['head_size']} numbers each"),
        ("", f"{sizes['embedding_rows']:,} token embeddings, {sizes['logits']:,} logits"),
        ("split", f"k = {sizes['early_layers']} of {sizes['layers']} layers see every token"),
        ("registers", f"{registers['prefix']} prefix, {registers['suffix']} suffix"),
        ("prompt", f"the newest {prompt['max_history']} items; tokens of text: {parts}"),
        ("scoring", f"{facts['scoring']}: over {SCORING_RULES[facts['scoring']].meaning}"),
        *_precision_rows(facts),
        ("limits", f"{limits['batch']} users per pass, {limits['beams']} beams, {limits['prompt']} tokens of prompt"),
    ]


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


def _cache_rows(cache: dict[str, int]) -> list[tuple[str, str]]:
    return [
        ("cache", f"{size(cache['bundle'])} at {cache['prompt']} prompt tokens and {cache['beams']} beams"),
        ("", f"{size(cache['dense'])} if it were dense, {cache['dense'] / cache['bundle']:.1f} times as much"),
    ]


def _trie_rows(trie: dict[str, Any]) -> list[tuple[str, str]]:
    shares = ", ".join(f"{share:.0%} after {tokens}" for tokens, share in trie["determined_after"].items())
    return [
        ("trie", f"{trie['items']:,} items, {trie['identifiers']:,} identifiers, {trie['nodes']:,} nodes"),
        ("", f"identifiers of up to {trie['depth']} tokens; determined are {shares} of them"),
    ]


def _listed(name: str, values: list[str]) -> list[tuple[str, str]]:
    """One value a line, the name beside the first."""
    return [("" if index else name, value) for index, value in enumerate(values)]
