#!/usr/bin/env python3
"""Makes cases of `golden/bugs` whose expected values come from transformers (and adapters from peft).

    python -m venv venv && venv/bin/pip install torch torchvision transformers==5.24.0 peft==0.21.2 pillow
    venv/bin/python tests/make_bugs.py [WORDS]

A case is a tiny model with settings changed, or with an adapter that peft makes here, saves, and
merges. What transformers then says of one picture is what a run must say. The factors of an adapter
are drawn, since untrained ones change nothing.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import peft
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
PICTURE = "images/b_small.png"
TOKENS = 3
CHATML = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {"llava": "USER: <image>\nWhat is shown? ASSISTANT:", "qwen": CHATML, "paligemma": "<image>What is it?"}
CASES = {
    "16-rope-scaling-hides-all-of-rope-parameters": {
        "report": "sgl-project/sglang#26187 (the same kind)",
        "model": "llava-1.5-tiny",
        "set": {"text_config/rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
                "text_config/rope_theta": 3000.0,
                "text_config/rope_scaling": {"type": "linear", "factor": 2.0}},
    },
    "17-rope-scaling-that-is-empty": {
        "report": "sgl-project/sglang#26187 (the same kind)",
        "model": "llava-1.5-tiny",
        "set": {"text_config/rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0},
                "text_config/rope_scaling": {}},
    },
    "18-llama3-context-beside-its-parameters": {
        "report": "sgl-project/sglang#26187 (the same kind)",
        "model": "llava-1.5-tiny",
        "set": {"text_config/original_max_position_embeddings": 16,
                "text_config/rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                             "high_freq_factor": 4.0, "original_max_position_embeddings": 512}},
    },
    "19-mrope-scaling-beside-rope-parameters": {
        "report": "sgl-project/sglang#26187",
        "model": "qwen2.5-vl-tiny",
        "set": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default", "mrope_section": [4, 2, 2]}},
    },
    "20-deepstack-indexes-out-of-order": {
        "report": "none: transformers looks the block up in the list",
        "model": "qwen3-vl-tiny",
        "set": {"vision_config/deepstack_visual_indexes": [2, 0]},
    },
    "40-adapter-of-every-kind-of-module": {
        "report": "vllm-project/vllm#4416, huggingface/transformers#30513",
        "model": "llava-1.5-tiny",
        "lora": {"r": 4, "lora_alpha": 6, "use_rslora": True,
                 "target_modules": ["q_proj", "v_proj", "down_proj", "linear_1", "patch_embedding", "embed_tokens"],
                 "rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.[01]\.mlp\.down_proj": 16}},
    },
    "41-adapter-with-biases": {
        "report": "vllm-project/vllm#4416, huggingface/transformers#30513",
        "model": "qwen2.5-vl-tiny",
        "lora": {"r": 3, "lora_alpha": 8, "lora_bias": True, "target_modules": ["qkv", "q_proj"]},
    },
    "42-adapter-with-whole-modules": {
        "report": "vllm-project/vllm#4416, huggingface/transformers#30513",
        "model": "qwen2.5-vl-tiny",
        "lora": {"r": 2, "lora_alpha": 8, "target_modules": ["gate_proj"], "bias": "all",
                 "modules_to_save": ["lm_head", "merger"]},
    },
    "43-adapter-of-a-table-that-is-the-head": {
        "report": "huggingface/peft#2777",
        "model": "paligemma-tiny",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "o_proj"]},
    },
    "44-adapter-with-a-whole-table-that-is-the-head": {
        "report": "huggingface/peft#2777",
        "model": "qwen3-vl-tiny",
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
    },
}


def set_keys(folder, values):
    path = folder / "config.json"
    root = json.loads(path.read_text())
    for key, value in values.items():
        *way, last = key.split("/")
        at = root
        for part in way:
            at = at[part]
        at[last] = value
    path.write_text(json.dumps(root))


def adapted(model, settings, folder):
    """The model with a drawn adapter merged; the adapter is saved to `folder`."""
    torch.manual_seed(7)
    with_adapter = peft.get_peft_model(model, peft.LoraConfig(**settings))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in with_adapter.named_parameters():
            if value.requires_grad:
                value += torch.randn(value.shape, generator=draw) * value.std().nan_to_num(0.1).clamp(0.1) * 0.5
    with_adapter.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    said = json.loads(config.read_text())
    said["base_model_name_or_path"] = "the tiny model"
    config.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    # From the files, as a user has them.
    fresh = peft.PeftModel.from_pretrained(with_adapter.unload(), folder)
    return fresh.merge_and_unload()


@torch.no_grad()
def said(model, processor, prompt):
    picture = Image.open(GOLDEN / PICTURE).convert("RGB")
    inputs = processor(text=[prompt], images=[[picture]], return_tensors="pt")
    inputs.pop("labels", None)
    out, first = [], None
    ids = inputs["input_ids"].clone()
    for _ in range(TOKENS):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        first = logits if first is None else first
        out.append(int(logits.argmax()))
        for key, fill in [("input_ids", out[-1]), ("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 1)]:
            if key in inputs:
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, 1), value=fill)
    return {"input_ids": ids[0].numpy(), "logits": first.numpy(), "greedy_ids": torch.tensor(out).numpy()}


def make(name, case):
    folder = GOLDEN / "bugs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prompt = next(text for family, text in PROMPTS.items() if case["model"].startswith(family))
    written = {"report": case["report"], "model": case["model"]}
    with tempfile.TemporaryDirectory() as temp:
        model_folder = pathlib.Path(temp) / "model"
        shutil.copytree(GOLDEN / "models" / case["model"], model_folder)
        if "set" in case:
            set_keys(model_folder, case["set"])
            written["set"] = {"config.json": case["set"]}
        model = AutoModelForImageTextToText.from_pretrained(
            model_folder, dtype=torch.float32, attn_implementation="eager").eval()
        plain = said(model, AutoProcessor.from_pretrained(model_folder), prompt)
        judge = [f"transformers {transformers.__version__}"]
        if "lora" in case:
            model = adapted(model, case["lora"], folder / "adapter").eval()
            written["adapter"] = "adapter"
            judge.append(f"peft {peft.__version__}")
            values = said(model, AutoProcessor.from_pretrained(model_folder), prompt)
            assert abs(values["logits"] - plain["logits"]).max() > 1e-2, "an adapter that changes nothing"
        else:
            values = plain
        save_file(values, folder / "expected.safetensors")
    judge += [f"torch {torch.__version__.split('+')[0]}", "eager", "f32"]
    written |= {"prompt": prompt, "images": [f"golden:{PICTURE}"], "max_tokens": TOKENS,
                "expect": {"tensors": True}, "judge": ", ".join(judge)}
    (folder / "case.json").write_text(json.dumps(written, indent=1) + "\n")
    print(name, values["greedy_ids"].tolist())


for name, case in CASES.items():
    if all(word in name for word in sys.argv[1:]):
        make(name, case)
