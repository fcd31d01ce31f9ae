"""The tokenizer: a byte-level BPE trained on the questions' own words, with location tokens for boxes.

All 256 bytes are in the vocabulary, so any text can be typed. Words that answers use are single tokens. Capital letters
and digits never merge: the model spells what it reads, one token a character.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from labels import LOCATIONS, SLOTS

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
VOCABULARY_SIZE = 704  # at most: the corpus has fewer merges to offer

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT: {% for c in m['content'] %}{{ c['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def build_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on `corpus`; the words of the dense labels are repeated so that each becomes one token."""
    words = {value for values in SLOTS.values() for value in values if value.isalpha() and value.islower()}
    lines = [" " + word for word in sorted(words) for _ in range(3000)] + corpus
    lines = ["".join(c for c in line if not (c.isupper() or c.isdigit())) for line in lines]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(LOCATIONS) - 2,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    # Plain added tokens, not special ones: they are part of an answer's text and must survive decoding.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("USER:", " ASSISTANT:", *LOCATIONS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def slot_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """Token ids of every slot's values; fails if a value is not a single token."""
    table = {}
    for slot, values in SLOTS.items():
        ids = []
        for value in values:
            text = " " + value if value.isalpha() and value.islower() else value
            tokens = tokenizer.encode(text, add_special_tokens=False)
            assert len(tokens) == 1, f"{text!r} is not one token"
            ids += tokens
        table[slot] = ids
    return table
