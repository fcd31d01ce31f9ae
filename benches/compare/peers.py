#!/usr/bin/env python3
"""secateur beside transformers (and llama.cpp, if it is built) on the 1B shape, in turn, in one run.

Every runtime gets random bf16 weights of the shape `tinyllava-1b`: a CLIP-L/14-336 tower and a
Llama decoder of 22 layers, 2048 wide, 32 query and 4 key heads. The figures are ratios of medians
over all rounds; absolute times belong to the machine named in the output.

    python -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python benches/compare/peers.py --secateur target/release/secateur

llama.cpp: `--llama-bench PATH --gguf FILE` with a BF16 file of the same decoder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

KEEP = [192, 64]


def secateur(binary, rounds, threads):
    """Milliseconds of encode, prefill by prompt length, and decode per token."""
    command = [binary, "bench", "--shape", "tinyllava-1b", "--keep", ",".join(map(str, KEEP)),
               "--decode", "24", "--repeats", str(rounds), "--threads", str(threads), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    out = {"encode": report["runs"][0]["ms"]["encode"], "device": report["device"]}
    for run in report["runs"]:
        length = run["prompt_tokens"] - run["visual_in"] + run["visual_kept"]
        out[f"prefill {length}"] = run["ms"]["prefill"]
        out[f"of ideal {run['visual_kept']}"] = run["of_ideal"]
    out["decode"] = report["runs"][0]["ms"]["decode"] / 23
    out["peak MiB"] = report["peak_bytes"] / 2**20
    return out


class Transformers:
    """The same shapes in transformers, bf16, sdpa."""

    def __init__(self, threads):
        import torch
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.bfloat16)
        self.tower = CLIPVisionModel(CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14, attn_implementation="sdpa")).eval()
        self.decoder = LlamaForCausalLM(LlamaConfig(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
            num_key_value_heads=4, vocab_size=32000, attn_implementation="sdpa")).eval()

    def timed(self, call, repeats):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)

    def measure(self, lengths, repeats, decode=24):
        torch = self.torch
        out = {}
        with torch.inference_mode():
            # The last tower layer is not needed for feature layer -2; both runtimes skip it.
            pixels = torch.randn(1, 3, 336, 336)
            inner = getattr(self.tower, "vision_model", self.tower)
            inner.encoder.layers = inner.encoder.layers[:23]
            self.tower(pixels)
            out["encode"] = self.timed(lambda: self.tower(pixels), repeats)
            for length in lengths:
                rows = torch.randn(1, length, 2048)
                call = lambda: self.decoder(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
                call()
                out[f"prefill {length}"] = self.timed(call, repeats)
            state = self.decoder(inputs_embeds=torch.randn(1, max(lengths), 2048), use_cache=True,
                                 logits_to_keep=1).past_key_values
            token = torch.zeros(1, 1, dtype=torch.long)
            steps = []
            for _ in range(decode):
                start = time.perf_counter()
                state = self.decoder(input_ids=token, past_key_values=state, use_cache=True).past_key_values
                steps.append((time.perf_counter() - start) * 1e3)
            out["decode"] = statistics.median(steps)
        return out


def llama(binary, gguf, lengths, threads):
    command = [binary, "-m", gguf, "-t", str(threads), "-p", ",".join(map(str, lengths)), "-n", "24",
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
    parser.add_argument("--llama-bench")
    parser.add_argument("--gguf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each runtime a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    runs = {"secateur": [], "transformers": [], "llama.cpp": []}
    peer = Transformers(args.threads)
    for round_ in range(args.rounds):
        print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
        ours = secateur(args.secateur, args.repeats, args.threads)
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
