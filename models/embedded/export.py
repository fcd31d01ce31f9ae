"""Writes the trained model in the Hugging Face layout and checks what it wrote."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from labels import PATCH
from model import IMAGE_MEAN, IMAGE_STD
from scenes import CANVAS
from vocabulary import CHAT_TEMPLATE, IMAGE

SIZE_LIMIT = 9_000_000
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": CANVAS, "width": CANVAS},
    "resample": 3,
    "do_center_crop": False,
    "crop_size": {"height": CANVAS, "width": CANVAS},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(IMAGE_MEAN),
    "image_std": list(IMAGE_STD),
}
PROCESSOR = {
    "processor_class": "LlavaProcessor",
    "image_token": IMAGE,
    "patch_size": PATCH,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def export(model: LlavaForConditionalGeneration, tokenizer, folder: Path) -> None:
    """Writes the eight files of the model to `folder` (bf16 weights)."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(torch.bfloat16)
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=96,
        do_sample=False,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("backend", None)
    _write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    _write_json(folder / "processor_config.json", PROCESSOR)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for name in MODEL_FILES:
        (folder / name).chmod(0o644)
    total = sum((folder / name).stat().st_size for name in MODEL_FILES)
    if total > SIZE_LIMIT:
        raise SystemExit(f"the model takes {total} bytes, more than {SIZE_LIMIT}")
    print(f"wrote {total / 1e6:.2f} MB to {folder}")


def check_export(folder: Path) -> str:
    """Loads the folder with transformers alone and describes a grey picture with it."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    picture = Image.fromarray(np.full((90, 160, 3), 128, np.uint8))
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
