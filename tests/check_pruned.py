#!/usr/bin/env python3
"""transformers, simply given the rows that a pruner kept, says what a pruned run says: every family.

    python -m venv venv && venv/bin/pip install torch torchvision transformers safetensors
    venv/bin/python tests/check_pruned.py --secateur target/release/secateur

For each case of `golden/open` without a chain, secateur runs it with a pruner that cuts before the
decoder. The reference's language model then gets the kept rows of its own input (embeddings,
positions, masks, deepstack rows), and must give the same logits, and the same tokens after them.
That checks what no dense run can: newlines, M-RoPE positions, deepstack rows and prefix masks
through a cut, and decode positions behind it. `--write` keeps what the reference said for the test
in `tests/golden.rs`, under `CASE|CHAIN|NAME`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

OPEN = pathlib.Path(__file__).resolve().parent / "golden" / "open"
CHAINS = ["random:keep=0.4:seed=5:positions=keep", "grid:keep=0.5:positions=keep"]
TOKENS = 5


def ours(binary, case, folder, chain):
    command = [binary, "trace", "--model", folder / case["model"], "--prompt", case["prompt"], "--raw-prompt",
               "--dtype", "f32", "--max-tokens", str(TOKENS), "--ignore-eos", "--prune", chain]
    command += ["--image-backend", "torchvision"]
    for image in case["images"]:
        command += ["--image", folder / image]
    if case.get("video_frames"):
        command += ["--frames", ",".join(str(folder / f) for f in case["video_frames"])]
        if case.get("video_fps"):
            command += ["--fps", str(case["video_fps"])]
    with tempfile.TemporaryDirectory() as temp:
        out = pathlib.Path(temp) / "trace.safetensors"
        subprocess.run([*map(str, command), "--out", out], check=True, capture_output=True)
        return load_file(out)


def inputs_of(processor, case, folder):
    picture = lambda name: Image.open(folder / name).convert("RGB")
    given = {"text": [case["prompt"]], "return_tensors": "pt"}
    if case.get("video_frames"):
        frames = [picture(f) for f in case["video_frames"]]
        fps = case.get("video_fps", 24.0)
        given["videos"] = [torch.from_numpy(np.stack([np.asarray(f) for f in frames])).permute(0, 3, 1, 2)]
        given["do_sample_frames"] = False
        given["video_metadata"] = [{"fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps,
                                    "frames_indices": list(range(len(frames)))}]
    elif case["images"]:
        given["images"] = [[picture(i) for i in case["images"]]]
    inputs = processor(**given)
    inputs.pop("labels", None)  # with labels the reference trains
    return inputs


def language_model(model):
    body = model.model
    return body.language_model if hasattr(body, "language_model") else body.text_model


def theirs(model, inputs, ids, kept):
    """Logits of the last prompt row and `TOKENS` greedy tokens of the language model on kept rows."""
    text, seen = language_model(model), {}

    def look(module, args, kwargs):
        seen.update(kwargs)

    hook = text.register_forward_pre_hook(look, with_kwargs=True)
    model(**inputs, use_cache=False)
    hook.remove()
    visual = visual_rows(model, ids)
    stays = torch.ones(len(ids), dtype=torch.bool)
    stays[visual] = False
    stays[visual[torch.as_tensor(kept)]] = True
    rows = seen["inputs_embeds"][:, stays]
    positions = seen.get("position_ids")
    if positions is None:
        positions = torch.arange(len(ids))[None]
    positions = positions[..., stays]
    extra = {}
    if seen.get("deepstack_visual_embeds") is not None:
        mask = seen["visual_pos_masks"]
        extra["deepstack_visual_embeds"] = [level[torch.as_tensor(kept)] for level in seen["deepstack_visual_embeds"]]
        extra["visual_pos_masks"] = mask[:, stays]
    # A prefix mask, or one a kind of layer.
    mask = seen.get("attention_mask")
    whole = mask if isinstance(mask, dict) else {"": mask}
    prefix = {kind: m for kind, m in whole.items() if m is not None and m.dim() == 4}
    out, logits = [], None
    for _ in range(TOKENS):
        # Given, since positions with gaps would otherwise be taken for several packed sequences.
        extra["attention_mask"] = torch.ones(rows.shape[:2], dtype=torch.long)
        if prefix:
            window = getattr(model.config.text_config, "sliding_window", None)
            behind = {kind: grown(m[:, :, stays][..., stays], positions[0], window if "sliding" in kind else None)
                      for kind, m in prefix.items()}
            extra["attention_mask"] = behind.get("", behind)
        if "visual_pos_masks" in extra:
            missing = rows.shape[1] - extra["visual_pos_masks"].shape[1]
            extra["visual_pos_masks"] = torch.nn.functional.pad(extra["visual_pos_masks"], (0, missing))
        hidden = text(inputs_embeds=rows, position_ids=positions, use_cache=False, **extra).last_hidden_state
        last = model.lm_head(hidden[:, -1])[0]
        cap = getattr(model.config.text_config, "final_logit_softcapping", None)
        last = cap * torch.tanh(last / cap) if cap else last
        logits = last if logits is None else logits
        out.append(int(last.argmax()))
        rows = torch.cat([rows, model.get_input_embeddings()(torch.tensor([[out[-1]]]))], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    return logits, out


def grown(mask, positions, window):
    """A mask with rows for the tokens behind it, which see what is before them (and in the window)."""
    floats = mask.dtype.is_floating_point
    seen, hidden = (0, torch.finfo(mask.dtype).min) if floats else (True, False)
    n, size = mask.shape[-1], len(positions)
    wide = torch.full((1, 1, size, size), hidden, dtype=mask.dtype)
    wide[..., :n, :n] = mask
    for row in range(n, size):
        near = positions[row] - positions[: row + 1] < (window or size + int(positions[row]))
        wide[..., row, : row + 1][..., near] = seen
    return wide


def visual_rows(model, ids):
    config = model.config
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    placeholders = [getattr(config, n) for n in names if getattr(config, n, None) is not None]
    return torch.nonzero(torch.isin(torch.as_tensor(ids), torch.tensor(placeholders)))[:, 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secateur", required=True, help="the command")
    parser.add_argument("--match", default="", help="only cases whose name holds that")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", help="golden/pruned.safetensors")
    args = parser.parse_args()
    models, golden, wrong, count = {}, {}, 0, 0
    for folder in sorted(OPEN.iterdir()):
        case = json.loads((folder / "case.json").read_text())
        if case["chain"] or args.match not in folder.name or not (case["images"] or case.get("video_frames")):
            continue
        path = (folder / case["model"]).resolve()
        if path not in models:
            model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
            models[path] = model.eval(), AutoProcessor.from_pretrained(path)
        model, processor = models[path]
        for chain in CHAINS:
            mine = ours(args.secateur, case, folder, chain)
            with torch.inference_mode():
                inputs = inputs_of(processor, case, folder)
                logits, ids = theirs(model, inputs, mine["input_ids"], mine["stage.0.kept"])
            same_ids = inputs["input_ids"][0].tolist() == mine["input_ids"].tolist()
            off = float((torch.from_numpy(mine["logits"]) - logits).abs().max() / logits.abs().max())
            good = same_ids and off < case["tolerance"] and ids == mine["greedy_ids"].tolist()
            wrong, count = wrong + (not good), count + 1
            said = {"stage.0.kept": mine["stage.0.kept"], "logits": logits.numpy(), "greedy_ids": np.array(ids)}
            golden.update({f"{folder.name}|{chain}|{name}": value for name, value in said.items()})
            print("ok  " if good else "BAD ", folder.name, chain.split(":")[0], f"{off:.1e}",
                  len(mine["stage.0.kept"]), "of", case.get("visual_tokens"), "" if good else (same_ids, ids, mine["greedy_ids"].tolist()))
    if args.write and not wrong:
        save_file(golden, args.write)
    print(f"{count - wrong} of {count} runs agree")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
