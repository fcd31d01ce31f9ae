"""The network: a LLaVA model small enough to ship, the dense heads that train its encoder, and faster attention."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from labels import GRID, IGNORE, PATCH, SLOT_INDEX, SLOTS
from scenes import CANVAS
from vocabulary import IMAGE, slot_token_ids

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
VISUAL_TOKENS = GRID * GRID
# The CLS attention of these layers is drawn to objects; the last one feeds the features that LLaVA reads (layer -2).
SALIENT_LAYERS = (2, 3, 4)
# The neighbours (rows, columns) that the four heads of the first three layers look at when training starts.
LOCAL_OFFSETS = (
    ((0, -1), (0, 1), (-1, 0), (1, 0)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((0, -2), (0, 2), (-2, 0), (2, 0)),
)
CLS_OUTPUTS = (8, 9, 4, 10)  # kinds present, colours present, number of objects, class of a whole photo
# Slots that are also read straight off the encoder: these are slow to learn, and through fewer layers they start sooner.
DIRECT_SLOTS = ("character", "photo")
LOCATION_SLOTS = ("y0", "x0", "y1", "x1")


def matmul_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention as plain matrix products in bf16: on CPU its backward pass is several times faster than the fused one."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    dtype = query.dtype
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = query.bfloat16() * scaling, key.bfloat16(), value.bfloat16()
        scores = query @ key.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores + attention_mask.to(scores.dtype)
        mixed = scores.softmax(dim=-1) @ value
    return mixed.transpose(1, 2).contiguous().to(dtype), None


AttentionInterface.register("bf16_matmul", matmul_attention)


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=416,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def _frequencies(count: int) -> torch.Tensor:
    return torch.pi / 2 * torch.exp(-torch.arange(count) / count * torch.log(torch.tensor(GRID * 4.0)))


def sinusoidal_positions(width: int, amplitude: float = 0.5) -> torch.Tensor:
    """A 2-D sine/cosine table for CLS + 16 x 16 patches: [row sines, row cosines, column sines, column cosines]."""
    angles = torch.arange(GRID)[:, None] * _frequencies(width // 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = axis[:, None].expand(GRID, GRID, -1)
    columns = axis[None, :].expand(GRID, GRID, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(GRID * GRID, width)
    return amplitude * torch.cat([torch.zeros(1, width), table])


def _initialise_local_attention(tower: nn.Module) -> None:
    """Starts the heads of the first layers as looks at one neighbouring patch each, like the taps of a convolution.

    A head reads a few sine/cosine pairs of the position table as they are for the keys, and turned by the neighbour's
    offset for the queries: their product is largest where key position = query position + offset. The patch embedding
    starts silent in those channels.
    """
    width, heads = tower.config.hidden_size, tower.config.num_attention_heads
    quarter, size = width // 4, width // heads
    pairs = 2 * torch.arange(size // 4)  # every other frequency, from the highest
    speed = _frequencies(quarter)[pairs]
    row_sine, column_sine = pairs, pairs + 2 * quarter
    channels = torch.cat([row_sine, row_sine + quarter, column_sine, column_sine + quarter])
    tower.embeddings.patch_embedding.weight[channels] = 0
    n = len(pairs)
    for layer, offsets in zip(tower.encoder.layers, LOCAL_OFFSETS):
        attention = layer.self_attn
        for head, offset in enumerate(offsets):
            key, query = torch.zeros(size, width), torch.zeros(size, width)
            for axis, sine in enumerate((row_sine, column_sine)):
                turn = speed * offset[axis]
                at = torch.arange(n) + axis * 2 * n
                key[at, sine], key[at + n, sine + quarter] = 1.0, 1.0
                query[at, sine], query[at, sine + quarter] = turn.cos(), turn.sin()
                query[at + n, sine + quarter], query[at + n, sine] = turn.cos(), -turn.sin()
            rows = slice(head * size, (head + 1) * size)
            for projection, start in ((attention.k_proj, key), (attention.q_proj, query)):
                projection.weight[rows] = 2.0 * start + 0.01 * torch.randn(size, width)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A freshly initialised model. Its encoder's last layer is the identity: LLaVA reads the output of the layer before."""
    model = LlavaForConditionalGeneration(build_config(tokenizer))
    tower = model.model.vision_tower
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.copy_(sinusoidal_positions(tower.config.hidden_size))
        for name, parameter in tower.named_parameters():
            if parameter.dim() == 2 and "layers" in name:
                nn.init.normal_(parameter, std=0.03 if "fc2" in name else 0.06)
        _initialise_local_attention(tower)
        last = tower.encoder.layers[-1]
        for projection in (last.self_attn.out_proj, last.mlp.fc2):
            projection.weight.zero_()
            projection.bias.zero_()
    tower.requires_grad_(False)
    for parameter in trainable_encoder(tower):
        parameter.requires_grad_(True)
    use_attention(model, "bf16_matmul")
    return model


def trainable_encoder(tower: nn.Module) -> list[nn.Parameter]:
    """All of the encoder but what comes after layer -2."""
    used = [tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-1]]
    return [parameter for part in used for parameter in part.parameters()]


def use_attention(model: LlavaForConditionalGeneration, implementation: str) -> None:
    for part in (model.model.vision_tower, model.model.language_model):
        part.config._attn_implementation = implementation


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (batch, height, width, 3) to CLIP's normalised (batch, 3, height, width)."""
    mean = torch.tensor(IMAGE_MEAN, device=pixels.device) * 255
    std = torch.tensor(IMAGE_STD, device=pixels.device) * 255
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def _cls_attention(attention: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Attention of CLS to the patches, averaged over heads: (batch, 256), sums to at most one."""
    batch, length, width = hidden.shape
    heads, size = attention.num_heads, attention.head_dim
    query = attention.q_proj(hidden[:, :1]).view(batch, 1, heads, size).transpose(1, 2)
    key = attention.k_proj(hidden).view(batch, length, heads, size).transpose(1, 2)
    weights = (query @ key.transpose(-1, -2) * attention.scale).float().softmax(dim=-1)
    return weights[:, :, 0, 1:].mean(dim=1)


def encode(tower: nn.Module, pixels: torch.Tensor, with_attention: bool = False, visible: torch.Tensor | None = None):
    """Output of layer -2 for CLS and patches; on request also the CLS attention of the salient layers.

    `visible` (batch, n) limits the work to some patches.
    """
    hidden = tower.embeddings(pixels)
    if visible is not None:
        patches = hidden[:, 1:].gather(1, visible[..., None].expand(-1, -1, hidden.shape[-1]))
        hidden = torch.cat([hidden[:, :1], patches], dim=1)
    hidden = tower.pre_layrnorm(hidden)
    attention = []
    for index, layer in enumerate(tower.encoder.layers[:-1]):
        if with_attention and index in SALIENT_LAYERS:
            attention.append(_cls_attention(layer.self_attn, layer.layer_norm1(hidden)))
        hidden = layer(hidden, None)
    return (hidden, torch.stack(attention)) if with_attention else hidden


class DenseHeads(nn.Module):
    """Reads the dense labels off the encoder, in the decoder's words.

    A slot (colour, kind, y0, ...) is a low-rank map of the projected patch; its logits are taken with the rows of the tied
    embedding that stand for the slot's words. An attention head of the decoder has the same form, so the decoder finds
    visual tokens that it can read from the start.
    """

    RANK = 24

    def __init__(self, config: LlavaConfig, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        width = config.text_config.hidden_size
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.down = nn.Linear(width, len(SLOTS) * self.RANK, bias=False)
        self.up = nn.ParameterList([nn.Parameter(torch.randn(self.RANK, width) * self.RANK**-0.5) for _ in SLOTS])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(len(values))) for values in SLOTS.values()])
        self.direct_norm = nn.LayerNorm(config.vision_config.hidden_size)
        self.direct = nn.ModuleDict(
            {slot: nn.Linear(config.vision_config.hidden_size, len(SLOTS[slot])) for slot in DIRECT_SLOTS}
        )
        self.cls_norm = nn.LayerNorm(config.vision_config.hidden_size)
        self.cls = nn.Linear(config.vision_config.hidden_size, sum(CLS_OUTPUTS))
        table = slot_token_ids(tokenizer)
        self.token_ids = [torch.tensor(table[slot]) for slot in SLOTS]
        spread = torch.arange(64)
        kernel = torch.exp(-0.5 * ((spread[:, None] - spread[None]) / 0.7) ** 2)
        self.register_buffer("location_kernel", kernel / kernel.sum(dim=1, keepdim=True), persistent=False)

    def slot_logits(self, low: torch.Tensor, slot: int, embedding: torch.Tensor) -> torch.Tensor:
        """Logits of one slot for (n, slots, rank) reduced patches."""
        words = embedding[self.token_ids[slot].to(embedding.device)]
        return low[:, slot] @ (self.up[slot] @ words.T) * 4.0 + self.bias[slot]

    def losses(self, hidden, projected, embedding, patches, cls) -> tuple[dict, dict]:
        """Losses and accuracies per slot.

        `hidden` is the encoder's output with CLS, `projected` (batch, 256, width), `patches` (batch, slots, 256).
        """
        losses, accuracy = {}, {}
        low = self.down(self.norm(projected.float()).flatten(0, 1)).view(-1, len(SLOTS), self.RANK)
        labels = patches.transpose(1, 2).flatten(0, 1)
        on_objects = (labels[:, 0] > 0).nonzero().squeeze(1)
        object_low, object_labels = low.index_select(0, on_objects), labels.index_select(0, on_objects)
        for slot, name in enumerate(SLOTS):
            of_kind = name == "kind"
            target = labels[:, slot] if of_kind else object_labels[:, slot]
            labelled = target != IGNORE
            if not labelled.any():
                continue
            logits = self.slot_logits(low if of_kind else object_low, slot, embedding).float()
            guess = logits.detach().argmax(dim=-1)
            if name in LOCATION_SLOTS:
                wanted = self.location_kernel[target.clamp(min=0)] * labelled[:, None]
                losses[name] = -(wanted * logits.log_softmax(dim=-1)).sum() / labelled.sum()
                accuracy[name] = ((guess - target).abs() <= 1)[labelled].float().mean()
            else:
                losses[name] = F.cross_entropy(logits, target, ignore_index=IGNORE)
                scored = target > 0 if of_kind else labelled
                accuracy[name] = (guess == target)[scored].float().mean()
        on_objects_hidden = self.direct_norm(hidden[:, 1:].float()).flatten(0, 1).index_select(0, on_objects)
        for name, head in self.direct.items():
            target = object_labels[:, SLOT_INDEX[name]]
            if (target != IGNORE).any():
                losses["direct " + name] = F.cross_entropy(head(on_objects_hidden).float(), target, ignore_index=IGNORE)
        kinds, colours, count, whole = self.cls(self.cls_norm(hidden[:, 0].float())).split(CLS_OUTPUTS, dim=-1)
        ranked = cls[:, 17] >= 0
        if ranked.any():
            present = torch.cat([kinds, colours], dim=-1)[ranked]
            losses["cls present"] = F.binary_cross_entropy_with_logits(present, cls[ranked, :17])
            losses["cls count"] = F.cross_entropy(count[ranked], cls[ranked, 17].long())
        photo = cls[:, 18] >= 0
        if photo.any():
            labels = cls[photo, 18].long()
            losses["cls photo"] = F.cross_entropy(whole[photo], labels)
            accuracy["cls photo"] = (whole[photo].argmax(dim=-1) == labels).float().mean()
        return losses, accuracy


def salience_loss(attention: torch.Tensor, salience: torch.Tensor) -> torch.Tensor:
    """Cross-entropy that draws the CLS attention (layers, batch, 256) to the salient patches (batch, 256)."""
    marked = salience.sum(dim=-1) > 0
    if not marked.any():
        return attention.new_zeros(())
    return -(salience[marked] * (attention[:, marked] + 1e-6).log()).sum(dim=-1).mean()
