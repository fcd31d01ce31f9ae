"""Turns pictures and their questions into decoder sequences, and runs the decoder on them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from model import VISUAL_TOKENS
from questions import Turn
from vocabulary import BOS

TEXT_LENGTH = 160
KEPT_CHOICES = (32, 80, VISUAL_TOKENS)
KEPT_SHARES = (0.55, 0.30, 0.15)
NO_LABEL = -100


@dataclass
class Sequences:
    """A batch: `kept` visual tokens a picture, then `TEXT_LENGTH` tokens of packed turns.

    `prefix` is what comes before the visual tokens. `turn` tells which turn a text token belongs to (-1: padding);
    `labels` holds the next token where it is part of an answer.
    """

    prefix: torch.Tensor
    text: torch.Tensor
    labels: torch.Tensor
    turn: torch.Tensor
    offset: torch.Tensor
    isolated: bool


class DialogueBuilder:
    """Packs the turns behind each picture.

    In most batches the turns are isolated: each sees the picture and itself, at the positions it would have if it were
    the only one, so one pass over the visual tokens teaches many questions. The others are ordinary conversations.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.prefix = tokenizer.encode("USER: ", add_special_tokens=False)
        self.prefix.insert(0, tokenizer.convert_tokens_to_ids(BOS))
        self.pad = tokenizer.pad_token_id

    def tokenise(self, turn: Turn, first: bool) -> tuple[list[int], int]:
        """Tokens of a turn and how many of them are the question."""
        lead = "\n" if first else "USER: "
        question = self.tokenizer.encode(f"{lead}{turn.question} ASSISTANT:", add_special_tokens=False)
        answer = self.tokenizer.encode(f" {turn.answer}", add_special_tokens=False)
        return question + answer + [self.tokenizer.eos_token_id], len(question)

    def build(self, batch: list[list[Turn]], isolated: bool) -> Sequences:
        shape = (len(batch), TEXT_LENGTH)
        text = np.full(shape, self.pad, np.int64)
        labels = np.full(shape, NO_LABEL, np.int64)
        owner = np.full(shape, -1, np.int64)
        offset = np.zeros(shape, np.int64)
        for row, turns in enumerate(batch):
            at = 0
            for number, turn in enumerate(turns):
                tokens, asked = self.tokenise(turn, first=isolated or number == 0)
                end = at + len(tokens)
                if end > TEXT_LENGTH:
                    continue
                text[row, at:end] = tokens
                labels[row, at + asked - 1 : end - 1] = tokens[asked:]
                owner[row, at:end] = number
                offset[row, at:end] = np.arange(len(tokens)) if isolated else np.arange(at, end)
                at = end
        as_tensor = torch.from_numpy
        return Sequences(
            torch.tensor(self.prefix), as_tensor(text), as_tensor(labels), as_tensor(owner), as_tensor(offset), isolated
        )


def choose_visual_tokens(rng: np.random.Generator, salience: torch.Tensor, kept: int) -> torch.Tensor:
    """Indices of `kept` visual tokens a picture, ascending: half the time at random, else mostly the salient ones."""
    batch = len(salience)
    if kept == VISUAL_TOKENS:
        return torch.arange(VISUAL_TOKENS).expand(batch, -1)
    noise = -np.log(-np.log(rng.random((batch, VISUAL_TOKENS)) + 1e-9) + 1e-9)
    if kept < 64 or rng.random() < 0.6:
        noise = 0.5 * noise + np.log(salience.numpy() + 2e-4)
    chosen = torch.from_numpy(noise).topk(kept, dim=1).indices
    return chosen.sort(dim=1).values


def attention_mask_of(sequences: Sequences, kept: int) -> torch.Tensor:
    """Additive mask (batch, 1, length, length): causal, and for isolated turns blind to the other turns."""
    head = len(sequences.prefix) + kept
    batch, length = sequences.text.shape
    owner = torch.cat([torch.full((batch, head), -2), sequences.turn], dim=1)
    allowed = torch.ones(head + length, head + length, dtype=torch.bool).tril()[None].expand(batch, -1, -1)
    if sequences.isolated:
        same = owner[:, :, None] == owner[:, None, :]
        allowed = allowed & (same | (owner[:, None, :] == -2))
    return torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill_(~allowed, -1e9)[:, None]


def positions_of(sequences: Sequences, chosen: torch.Tensor, compact: bool) -> torch.Tensor:
    """Position ids: contiguous, or those that the kept tokens had among all 256."""
    batch, kept = chosen.shape
    start = len(sequences.prefix)
    head = torch.arange(start).expand(batch, -1)
    visual = torch.arange(kept).expand(batch, -1) if compact else chosen
    behind = start + (kept if compact else VISUAL_TOKENS)
    return torch.cat([head, visual + start, sequences.offset + behind], dim=1)


def decode(language_model, embedded, mask, positions):
    """The decoder's final hidden states."""
    rotary = language_model.rotary_emb(embedded, positions)
    hidden = embedded
    for layer in language_model.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return language_model.norm(hidden)


def answer_loss(model, projected, chosen, sequences: Sequences, compact: bool, device: str):
    """Cross-entropy of the answers, and the share of answer tokens that are guessed right."""
    language_model = model.model.language_model
    table = language_model.embed_tokens.weight
    visual = projected.gather(1, chosen.to(device)[..., None].expand(-1, -1, projected.shape[-1]))
    prefix = F.embedding(sequences.prefix.to(device), table).expand(len(visual), -1, -1)
    text = F.embedding(sequences.text.to(device), table)
    embedded = torch.cat([prefix, visual.float(), text], dim=1)
    mask = attention_mask_of(sequences, chosen.shape[1]).to(device)
    positions = positions_of(sequences, chosen, compact).to(device)
    hidden = decode(language_model, embedded, mask, positions)[:, -TEXT_LENGTH:]
    labels = sequences.labels.to(device)
    wanted = labels != NO_LABEL
    logits = (hidden[wanted] @ table.T).float()
    labels = labels[wanted]
    right = (logits.detach().argmax(dim=-1) == labels).float()
    return F.cross_entropy(logits, labels), right.mean()
