"""Trains, measures and exports the embedded model: see README.md for the recipe and the commands.

Without a mode the three stages run in order, each from its checkpoint if there is one. The modes are
`--make-eval DIR`, `--evaluate DIR`, `--score ANSWERS.jsonl --eval DIR` and `--export DIR`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from evaluate import QUESTIONS_FILE, answer_questions, format_table, make_eval, read_jsonl, score
from export import check_export, export
from model import DenseHeads, build_model
from questions import template_corpus
from stages import Stage, Surroundings, all_modules, encoder_modules, load_average, train_decoder, train_encoder
from vocabulary import build_tokenizer


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_argument_group("modes (default: train)").add_mutually_exclusive_group()
    modes.add_argument("--make-eval", type=Path, metavar="DIR", help="write held-out pictures with questions")
    modes.add_argument("--evaluate", type=Path, metavar="DIR", help="answer the questions of DIR and score them")
    modes.add_argument("--score", type=Path, metavar="FILE", help="score answers made by another program (JSONL)")
    modes.add_argument("--export", type=Path, metavar="DIR", help="write the Hugging Face folder")
    parser.add_argument("--eval", type=Path, metavar="DIR", help="the pictures that --score's answers are about")
    parser.add_argument("--count", type=int, default=100, help="number of pictures for --make-eval")
    parser.add_argument("--size", type=int, nargs=2, default=[128, 128], metavar=("W", "H"), help="of those pictures")
    parser.add_argument("--limit", type=int, help="answer only that many questions")
    parser.add_argument("--kept", type=int, nargs="+", default=[256], help="visual tokens kept in --evaluate")
    parser.add_argument("--keep-by", choices=("random", "cls"), default="random", help="how --evaluate chooses them")
    parser.add_argument("--cifar", help="folder of CIFAR-10 contact sheets (train-<class>-<n>.jpg, test-...)")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that make samples")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--stages", default="ABC", help="which stages to run, e.g. A")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=200)
    for name, steps, batch, rate in (("a", 6000, 32, 1.2e-3), ("b", 4000, 32, 1.5e-3), ("c", 4000, 32, 6e-4)):
        parser.add_argument(f"--steps-{name}", type=int, default=steps)
        parser.add_argument(f"--batch-{name}", type=int, default=batch)
        parser.add_argument(f"--rate-{name}", type=float, default=rate, help=f"peak learning rate of stage {name.upper()}")
    options = parser.parse_args()
    if options.score and not options.eval:
        parser.error("--score needs --eval DIR")
    if not (options.cifar or options.make_eval or options.evaluate or options.score or options.export):
        parser.error("training needs --cifar DIR")
    return options


def load_latest(options, model, heads) -> str:
    """Loads the averaged weights of the latest stage that has a checkpoint."""
    for name, modules in (("C", all_modules), ("B", all_modules), ("A", encoder_modules)):
        path = options.checkpoints / f"{name}.pt"
        if path.exists():
            step = load_average(path, modules(model, heads), options.device)
            return f"stage {name}, step {step}"
    raise SystemExit(f"no checkpoint in {options.checkpoints}")


def train(options, tokenizer, model, heads) -> None:
    around = Surroundings(
        cifar=options.cifar,
        checkpoints=options.checkpoints,
        seed=options.seed,
        device=options.device,
        workers=options.workers,
        compile=options.compile,
        log_every=options.log_every,
        save_every=options.save_every,
    )
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    stages = {
        "A": Stage("A", options.steps_a, options.batch_a, options.rate_a),
        "B": Stage("B", options.steps_b, options.batch_b, options.rate_b),
        "C": Stage("C", options.steps_c, options.batch_c, options.rate_c),
    }
    if "A" in options.stages:
        train_encoder(stages["A"], around, model, heads)
    for name, before, modules in (("B", "A", encoder_modules), ("C", "B", all_modules)):
        if name in options.stages:
            load_average(options.checkpoints / f"{before}.pt", modules(model, heads), options.device)
            train_decoder(stages[name], around, model, heads, tokenizer, joint=name == "C")


def evaluate(options, tokenizer, model, heads) -> None:
    print("#", load_latest(options, model, heads))
    questions = read_jsonl(options.evaluate / QUESTIONS_FILE)[: options.limit]
    columns = {}
    for kept in options.kept:
        answers = answer_questions(
            model, tokenizer, options.evaluate, kept, options.keep_by, options.device, options.limit
        )
        columns[str(kept)] = score(questions, answers)
        path = options.checkpoints / f"answers-{options.keep_by}-{kept}.jsonl"
        path.write_text("".join(json.dumps(a) + "\n" for a in answers))
    print(format_table(columns))


def main() -> None:
    options = parse_options()
    if options.make_eval:
        make_eval(options.make_eval, options.cifar, options.seed, options.count, options.size)
        return
    if options.score:
        questions = read_jsonl(options.eval / QUESTIONS_FILE)
        print(format_table({"score": score(questions, read_jsonl(options.score))}))
        return
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer(template_corpus(np.random.default_rng(options.seed)))
    model = build_model(tokenizer).to(options.device)
    heads = DenseHeads(model.config, tokenizer).to(options.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    if options.evaluate:
        evaluate(options, tokenizer, model, heads)
    elif options.export:
        print("exporting", load_latest(options, model, heads))
        export(model, tokenizer, options.export)
        print("check:", check_export(options.export))
    else:
        train(options, tokenizer, model, heads)


if __name__ == "__main__":
    main()
