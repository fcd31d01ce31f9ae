#!/usr/bin/env python3
"""What transformers' own decoder layers say when rows leave between them: every family.

    python -m venv venv && venv/bin/pip install torch torchvision transformers==5.24.* safetensors num2words
    venv/bin/python tests/check_decoder_cuts.py --write tests/golden/decoder_cuts.safetensors

For each case of `golden/open` with pictures or a video and without a chain: the reference prepares
the rows that enter its decoder, and its layers are then run one by one. Before the layers of a cut
the rows of a fixed list of visual tokens stay, with their positions (`keep`) or counted anew from
the cut on (`renumber`, where positions have one axis); deepstack rows are cut with them, newlines
stay. There is no cache: every token runs the whole sequence again, each layer over the rows and the
positions that it has, so a cache that differs from layer to layer is checked against none.

Masks are made here by the rule of `mask`; that rule must give the reference's own mask of every
layer, and the loop without a cut the reference's own logits, before anything is written. A list is
drawn anew until the reference's greedy choices are clear.

The file holds tensors under `CASE|SITES|POSITIONS|NAME`: what stays before each layer of SITES
(`kept.LAYER`, places among all visual tokens) and what `secateur trace` writes of such a run. The
test is `tests/tests/decoder_cuts.rs`.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from check_pruned import OPEN, inputs_of, language_model, visual_rows

SITES = [(1,), (2,), (1, 2)]
# What a cut leaves of the visual tokens that are there.
SHARE = 0.55
TOKENS = 5
# The best logit must lead by this share of the largest: far above any tolerance.
CLEAR = 5e-3


class Reference:
    """A model, and the rows of one prompt as they enter its decoder."""

    def __init__(self, model, inputs):
        self.model, self.text = model, language_model(model)
        self.layers = self.text.layers
        config = model.config.text_config
        self.cap = getattr(config, "final_logit_softcapping", None)
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(self.layers)
        self.windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
        # Rows that the prompt sees in both directions.
        self.prefix = model.config.model_type == "paligemma"
        seen = self.watch(lambda: model(**inputs, use_cache=False))
        self.rows, self.positions, self.masks = seen["rows"], seen["positions"], seen["masks"]
        ids = inputs["input_ids"][0]
        self.prompt, self.visual = len(ids), visual_rows(model, ids)
        self.axes = self.positions.shape[0] if self.positions.dim() == 3 else 1
        self.levels = seen["levels"]
        newline = getattr(model.model, "image_newline", None)
        same = lambda row: newline is not None and bool((row == newline).all())
        self.structural = [i for i, v in enumerate(self.visual) if same(self.rows[0, v])]
        self.check(seen["out"].logits[0, -1])

    def watch(self, call):
        """What enters the first layer, the rotation and every layer's mask while `call` runs."""
        seen = {"masks": {}}

        def text(_, args, kwargs):
            seen["levels"] = kwargs.get("deepstack_visual_embeds") or []

        def rotary(_, args, kwargs):
            seen["positions"] = args[1] if len(args) > 1 else kwargs["position_ids"]

        def layer(index):
            def hook(_, args, kwargs):
                if index == 0:
                    seen["rows"] = args[0] if args else kwargs["hidden_states"]
                seen["masks"][index] = kwargs["attention_mask"]
            return hook

        watched = [(self.text, text), (self.text.rotary_emb, rotary)]
        watched += [(module, layer(i)) for i, module in enumerate(self.layers)]
        hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in watched]
        seen["out"] = call()
        for hook in hooks:
            hook.remove()
        return seen

    def mask(self, layer, prompt, positions):
        """Order decides what a row sees, and in a window the distance of positions. Rows of a
        prefix see one another."""
        count = positions.shape[-1]
        place, at = torch.arange(count), positions.reshape(-1, count)[0]
        sees = place[None] <= place[:, None]
        if self.windows[layer]:
            sees &= at[:, None] - at[None] < self.windows[layer]
        if self.prefix:
            sees[:prompt] = place[None] < prompt
        return torch.where(sees, 0.0, torch.finfo(torch.float32).min)[None, None]

    def check(self, logits):
        for layer, mask in self.masks.items():
            mine = self.mask(layer, self.prompt, self.positions) == 0
            theirs = mask if mask.dtype == torch.bool else mask == 0
            assert torch.equal(mine, theirs.expand_as(mine)), f"layer {layer}: another mask"
        off = (self.run({}, "keep", [])["logits"] - logits).abs().max() / logits.abs().max()
        assert off < 1e-5, f"the loop differs from the model by {off:.1e}"

    def entering(self, token):
        """The row of a generated token before the first layer."""
        embedded = self.model.get_input_embeddings()(torch.tensor([[token]]))
        positions = self.positions[..., :1]
        return self.watch(lambda: self.text(inputs_embeds=embedded, position_ids=positions, use_cache=False))["rows"]

    def run(self, cuts, policy, generated):
        """The last row's logits behind `generated` tokens, and what layers saw on the way."""
        x, positions = self.rows, self.positions
        for token in generated:
            x = torch.cat([x, self.entering(token)], dim=1)
            positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
        prompt, levels = self.prompt, list(self.levels)
        # The visual index of each row, -1 for text.
        tokens = torch.full((x.shape[1],), -1)
        tokens[self.visual] = torch.arange(len(self.visual))
        said = {}
        for index, layer in enumerate(self.layers):
            if index in cuts:
                stays = (tokens < 0) | torch.isin(tokens, torch.as_tensor(cuts[index]))
                levels = [level[stays[tokens >= 0]] for level in levels]
                prompt = int(stays[:prompt].sum())
                x, positions, tokens = x[:, stays], positions[..., stays], tokens[stays]
                if policy == "renumber":
                    positions = positions[..., :1] + torch.arange(len(tokens))
            x = layer(x, attention_mask=self.mask(index, prompt, positions), position_ids=positions,
                      position_embeddings=self.text.rotary_emb(x, positions), use_cache=False)
            x = x[0] if isinstance(x, tuple) else x
            if index < len(levels):
                x = x.clone()
                x[0, tokens >= 0] += levels[index]
            said[f"layer.{index}.last_hidden"] = x[0, -1]
            said[f"layer.{index}.kv_len"] = torch.tensor([len(tokens)])
            said[f"layer.{index}.positions"] = positions.reshape(-1, len(tokens)).squeeze(0).long()
        logits = self.model.lm_head(self.text.norm(x[:, -1]))[0]
        said["logits"] = self.cap * torch.tanh(logits / self.cap) if self.cap else logits
        return said

    def answer(self, cuts, policy):
        """A whole answer, or `None` where a choice is not clear."""
        said, ids = None, []
        for _ in range(TOKENS):
            step = self.run(cuts, policy, ids)
            best, second = step["logits"].topk(2).values
            if best - second < CLEAR * step["logits"].abs().max():
                return None
            ids.append(int(step["logits"].argmax()))
            said = said or step
        return said | {"greedy_ids": torch.tensor(ids)}

    def draw(self, sites, seed):
        """What stays before each layer: tokens by lot, and every newline."""
        draws, there, cuts = np.random.default_rng(seed), np.arange(len(self.visual)), {}
        for site in sites:
            free = np.setdiff1d(there, self.structural)
            chosen = draws.choice(free, max(1, round(len(free) * SHARE)), replace=False)
            there = np.sort(np.concatenate([chosen, np.array(self.structural, dtype=int)]))
            cuts[site] = there.tolist()
        return cuts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only cases whose name holds that")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", help="golden/decoder_cuts.safetensors")
    args = parser.parse_args()
    models, golden, runs = {}, {}, 0
    for folder in sorted(OPEN.iterdir()):
        case = json.loads((folder / "case.json").read_text())
        kind = folder.name.rsplit(".", 1)[-1]
        if case["chain"] or args.match not in folder.name or kind not in ("image", "two", "video"):
            continue
        path = (folder / case["model"]).resolve()
        if path not in models:
            model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
            models[path] = model.eval(), AutoProcessor.from_pretrained(path)
        model, processor = models[path]
        with torch.inference_mode():
            reference = Reference(model, inputs_of(processor, case, folder))
            for sites in SITES:
                for policy in ["keep"] + ["renumber"] * (reference.axes == 1):
                    drawn = ((cuts, reference.answer(cuts, policy)) for seed in range(100)
                             for cuts in [reference.draw(sites, seed)])
                    cuts, said = next((cuts, said) for cuts, said in drawn if said)
                    said |= {f"kept.{layer}": torch.tensor(kept) for layer, kept in cuts.items()}
                    key = f"{folder.name}|{'+'.join(map(str, sites))}|{policy}"
                    golden.update({f"{key}|{name}": value.numpy() for name, value in said.items()})
                    runs += 1
        print(folder.name, len(reference.visual), "visual tokens,", len(reference.structural), "newlines,",
              len(reference.levels), "deepstack levels,", reference.axes, "axes", flush=True)
    if args.write:
        save_file(golden, args.write)
    print(f"{runs} runs")


if __name__ == "__main__":
    main()
