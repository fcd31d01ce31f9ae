#!/usr/bin/env python3
"""secateur beside transformers (and llama.cpp, if it is built) on a named shape, in turn, in one run.

Every runtime gets random bf16 weights of the shape (`--shape`). Encoding is the tower and its
projector; the decoder runs on rows of the lengths that secateur's dense and pruned prompts have.
The figures are ratios of medians over all rounds; absolute times belong to the machine named in
the output.

    python -m venv venv && venv/bin/pip install torch torchvision transformers
    venv/bin/python benches/compare/peers.py --secateur target/release/secateur --shape qwen2.5-vl-3b

llama.cpp: `--llama-bench PATH --gguf FILE` with a BF16 file of the same decoder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

DECODE = 24
# What secateur is asked for beside the shape.
BENCH = {
    "tinyllava-1b": ["--keep", "192,64"],
    "qwen2.5-vl-3b": ["--keep", "192,64", "--visual", "576",
                      "--prune", "vtc_cls:keep={keep}:per=image:fallback=column_mean"],
    "smolvlm-256m": ["--keep", "272,136", "--prune", "vtc_cls:keep={keep}:per=image:fallback=column_mean"],
}


def secateur(binary, shape, rounds, threads):
    """Milliseconds of encode, prefill by prompt length, and decode per token."""
    command = [binary, "bench", "--shape", shape, *BENCH[shape], "--decode", str(DECODE),
               "--repeats", str(rounds), "--threads", str(threads), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    out = {"encode": report["runs"][0]["ms"]["encode"], "device": report["device"]}
    for run in report["runs"]:
        length = run["prompt_tokens"] - run["visual_in"] + run["visual_kept"]
        out[f"prefill {length}"] = run["ms"]["prefill"]
        if run["name"] != "dense":
            out[f"of ideal {run['visual_kept']}"] = run["of_ideal"]
    out["decode"] = report["runs"][0]["ms"]["decode"] / (DECODE - 1)
    out["peak MiB"] = report["peak_bytes"] / 2**20
    return out


def tinyllava(torch):
    """Tower and decoder of LLaVA-1.5's kind, 1.1 B."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    tower = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, attn_implementation="sdpa")).eval()
    # The last tower layer is not needed for feature layer -2; both runtimes skip it.
    inner = getattr(tower, "vision_model", tower)
    inner.encoder.layers = inner.encoder.layers[:23]
    decoder = LlamaForCausalLM(LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, attn_implementation="sdpa")).eval()
    pixels = torch.randn(1, 3, 336, 336)
    return lambda: tower(pixels), decoder, decoder.lm_head


def qwen(torch):
    """Qwen2.5-VL-3B; one picture of 672 x 672."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
            num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}),
        vision_config=dict(
            depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=2048,
            patch_size=14, spatial_merge_size=2, temporal_patch_size=2, window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31]),
        tie_word_embeddings=True)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    side = 672 // 14
    pixels = torch.randn(side * side, 3 * 2 * 14 * 14)
    grid = torch.tensor([[1, side, side]])
    tower, decoder = model.model.visual, model.model.language_model
    return lambda: tower(pixels, grid_thw=grid), decoder, model.lm_head


def smolvlm(torch):
    """SmolVLM-256M; one square picture: sixteen tiles and the whole."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        scale_factor=4, tie_word_embeddings=True, image_token_id=49190,
        text_config=dict(
            model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49280),
        vision_config=dict(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            image_size=512, patch_size=16))
    model = SmolVLMForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 17, 3, 512, 512)
    encode = lambda: model.model.get_image_features(pixel_values=pixels)
    return encode, model.model.text_model, model.lm_head


PEERS = {"tinyllava-1b": tinyllava, "qwen2.5-vl-3b": qwen, "smolvlm-256m": smolvlm}


class Transformers:
    """A shape in transformers, bf16, sdpa."""

    def __init__(self, shape, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.bfloat16)
        self.encode, self.decoder, self.head = PEERS[shape](torch)
        self.body = getattr(self.decoder, "model", self.decoder)
        self.width = self.body.config.hidden_size

    def step(self, past=None, **inputs):
        """One pass through the decoder and the logits of its last row; the cache behind it."""
        out = self.body(past_key_values=past, use_cache=True, **inputs)
        self.head(out.last_hidden_state[:, -1:])
        return out.past_key_values

    def timed(self, call, repeats):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    def measure(self, lengths, repeats):
        torch = self.torch
        out = {}
        with torch.inference_mode():
            self.encode()
            out["encode"] = self.timed(self.encode, repeats)
            for length in lengths:
                rows = torch.randn(1, length, self.width)
                self.step(inputs_embeds=rows)
                out[f"prefill {length}"] = self.timed(lambda: self.step(inputs_embeds=rows), repeats)
            state = self.step(inputs_embeds=torch.randn(1, max(lengths), self.width))
            token = torch.zeros(1, 1, dtype=torch.long)
            steps = []
            for _ in range(DECODE):
                start = time.perf_counter()
                state = self.step(past=state, input_ids=token)
                steps.append((time.perf_counter() - start) * 1e3)
            out["decode"] = statistics.median(steps)
        return out


def llama(binary, gguf, lengths, threads):
    command = [binary, "-m", gguf, "-t", str(threads), "-p", ",".join(map(str, lengths)), "-n", str(DECODE),
               "-r", "3", "-o", "json"]
    tests = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    out = {}
    for test in tests:
        per_token = 1e3 / test["avg_ts"]
        name = "decode" if test["n_gen"] else f"prefill {test['n_prompt']}"
        out[name] = per_token * (1 if test["n_gen"] else test["n_prompt"])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secateur", required=True)
    parser.add_argument("--shape", choices=sorted(BENCH), default="tinyllava-1b")
    parser.add_argument("--llama-bench")
    parser.add_argument("--gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each runtime a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    runs = {"secateur": [], "transformers": [], "llama.cpp": []}
    peer = Transformers(args.shape, args.threads)
    for round_ in range(args.rounds):
        print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
        ours = secateur(args.secateur, args.shape, args.repeats, args.threads)
        runs["secateur"].append(ours)
        lengths = sorted((int(k.split()[1]) for k in ours if k.startswith("prefill ")), reverse=True)
        runs["transformers"].append(peer.measure(lengths, args.repeats))
        if args.llama_bench:
            runs["llama.cpp"].append(llama(args.llama_bench, args.gguf, lengths, args.threads))

    medians = {
        name: {key: statistics.median(r[key] for r in rows)
               for key in rows[0] if isinstance(rows[0][key], (int, float))}
        for name, rows in runs.items() if rows
    }
    ours = medians["secateur"]
    peers = [name for name in medians if name != "secateur"]
    print(f"secateur: {runs['secateur'][0]['device']}; {args.rounds} rounds of {args.repeats}; ms, median")
    print("| stage | secateur | " + " | ".join(f"{p} | {p} / secateur" for p in peers) + " |")
    print("| --- | ---: |" + " ---: | ---: |" * len(peers))
    for key, value in ours.items():
        cells = [f"{medians[p][key]:.1f} | {medians[p][key] / value:.2f}" if key in medians[p] else "- | -"
                 for p in peers]
        print(f"| {key} | {value:.2f} | " + " | ".join(cells) + " |")
    print(json.dumps(medians), file=sys.stderr)


if __name__ == "__main__":
    main()
