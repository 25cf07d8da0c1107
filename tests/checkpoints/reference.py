"""Checkpoint folders as transformers 5 writes them, and the logits that transformers 5 computes with them.

`transformers5.json` beside this file holds, for each case, config.json as it was written, token ids, positions, and
logits. Weights are drawn from generators that are seeded with the weights' names, so the file needs none. It is made
anew, in an environment with transformers 5, by

    python -m tests.checkpoints.reference
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

FILE = Path(__file__).with_name("transformers5.json")
TOKENS = [3, 17, 5, 22, 9, 30, 1, 12]
POSITIONS = [0, 1, 2, 7, 40, 41, 150, 400]  # gaps, so that every frequency of the rotary embedding counts

SIZES: Mapping[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3}

# case: model type, settings beside SIZES
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama-llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2-theta": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}}),
    "qwen3-theta": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mistral": ("mistral", {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "smollm3": (
        "smollm3",
        {
            "no_rope_layers": [1, 0, 1],
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 512,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ),
    "phi3": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "phi3-partial": (
        "phi3",
        {
            "sliding_window": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.75},
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.2, 1.5],
                "long_factor": [1.0, 4.0, 16.0],
            },
        },
    ),
}


def weight(name: str, shape: Iterable[int]) -> NDArray[np.float32]:
    """A weight whose outputs are as spread as its inputs; the same for the same name and shape."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if noise.ndim == 1:
        norm = 0.0 if name.endswith("bias") else 1.0
        return norm + 0.2 * noise
    return noise / np.float32(np.sqrt(noise.shape[1]))


def write_folder(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, Iterable[int]]) -> Path:
    """A checkpoint folder with this config.json and drawn weights of these names and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def main() -> None:
    """Writes the file anew."""
    import tempfile

    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    assert int(transformers.__version__.partition(".")[0]) >= 5
    cases = {}
    for case, (model_type, settings) in CASES.items():
        config = AutoConfig.for_model(model_type, **{**SIZES, "tie_word_embeddings": False, **settings})
        with tempfile.TemporaryDirectory() as folder:
            model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
            config.architectures = [model_class.__name__]
            config.save_pretrained(folder)
            written = json.loads((Path(folder) / "config.json").read_text())
            model = AutoModelForCausalLM.from_config(config)
            shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
            write_folder(Path(folder), written, shapes)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            rows = len(TOKENS)
            # Given whole, for a gap between positions would be taken as the start of another sequence.
            bias = torch.triu(torch.full((rows, rows), torch.finfo(torch.float32).min), diagonal=1)[None, None]
            answer = model(torch.tensor([TOKENS]), attention_mask=bias, position_ids=torch.tensor([POSITIONS]))
            logits = answer.logits[0]
        print(f"{case}: spread {float(logits.std()):.2f}")
        cases[case] = {
            "config": written,
            "shapes": shapes,
            "logits": [[round(float(value), 6) for value in row] for row in logits],
        }
    file = {"transformers": transformers.__version__, "cases": cases}
    FILE.write_text(json.dumps(file, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
