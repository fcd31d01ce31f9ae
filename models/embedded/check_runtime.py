#!/usr/bin/env python3
"""transformers loads this folder, and its greedy tokens equal the runtime's, in f32.

    python check_runtime.py --secateur ../../target/release/secateur [--count 10]

Asks the first questions of the first pictures of `eval/` through both and compares token ids.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

FOLDER = pathlib.Path(__file__).resolve().parent


def ours(binary: str, picture: pathlib.Path, prompt: str, tokens: int) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "trace.safetensors"
        subprocess.run(
            [binary, "trace", "--model", FOLDER, "--dtype", "f32", "--raw-prompt", "--prompt", prompt, "--image", picture,
             "--max-tokens", str(tokens), "--out", out], check=True, capture_output=True)
        return load_file(out)["greedy_ids"].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secateur", required=True, help="the command")
    parser.add_argument("--count", type=int, default=10, help="pictures")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()

    model = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(FOLDER)
    first = {}
    for line in (FOLDER / "eval" / "questions.jsonl").read_text().splitlines():
        question = json.loads(line)
        first.setdefault(question["image"], question)
    wrong = 0
    for name, question in list(first.items())[: args.count]:
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question["question"]}]}]
        prompt = processor.apply_chat_template(message, add_generation_prompt=True)
        picture = FOLDER / "eval" / name
        inputs = processor(images=Image.open(picture).convert("RGB"), text=prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=args.tokens)
        theirs = ids[0, inputs["input_ids"].shape[1]:].tolist()
        mine = ours(args.secateur, picture, prompt, args.tokens)
        wrong += theirs != mine
        print("ok  " if theirs == mine else "BAD ", name, processor.tokenizer.decode(theirs, skip_special_tokens=True))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
