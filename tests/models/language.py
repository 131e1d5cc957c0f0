"""Token models: recurrences, transformers, Hugging Face's GPT-2 and T5, a contrastive one."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from stepbench import Workload
from tests.models.frozen import Points

WORDS, LENGTH = 128, 16


def _tokens(point, label):
    tokens = (point.abs()[:LENGTH] * 50).long() % WORDS
    return tokens, tokens.roll(-1)


class Lstm(nn.Module):
    """Its last layer is called `fc`."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 32), nn.LSTM(32, 64, 2, batch_first=True)
        self.fc = nn.Linear(64, WORDS)

    def forward(self, tokens):
        return self.fc(self.lstm(self.words(tokens))[0])


def _cross_entropy(logits, targets):
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def lstm():
    return Workload(
        model=Lstm, dataset=lambda: Points(_tokens), loss=_cross_entropy, global_batch=8
    )


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip


def gpt2():
    """The model shifts its labels by itself: of each sample's tokens all but one are predicted."""
    return Workload(
        model=_gpt2,
        dataset=lambda: Points(lambda point, label: {"input_ids": _tokens(point, label)[0]}),
        call=lambda model, batch: model(**batch, labels=batch["input_ids"]).loss,
        loss=None,
        loss_terms=lambda batch: batch["input_ids"][:, 1:].numel(),
        blocks=lambda model: list(model.transformer.h),
        global_batch=8,
    )


def _without_decay_of_vectors(model):
    """Groups by name and shape, as nanoGPT's `configure_optimizers` makes them."""
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    decayed = [one for name, one in named if one.dim() >= 2 and "wpe" not in name]
    others = [one for name, one in named if one.dim() < 2 or "wpe" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-4)


def gpt2_in_groups():
    return replace(gpt2(), optimizer=_without_decay_of_vectors)


def _t5(use_cache=False):
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0, use_cache=use_cache,
        )
    )  # fmt: skip


def t5():
    """Encoder and decoder: a checkpointed block must be called by the model as it is listed."""
    return Workload(
        model=_t5,
        dataset=lambda: Points(
            lambda point, label: dict(
                zip(("input_ids", "labels"), _tokens(point, label), strict=True)
            )
        ),
        call=lambda model, batch: model(**batch).loss,
        loss=None,
        loss_terms=lambda batch: batch["labels"].numel(),
        blocks=lambda model: [*model.encoder.block, *model.decoder.block],
        global_batch=8,
    )


class Towers(nn.Module):
    """Two encoders whose outputs meet in one matrix of similarities (Radford et al. 2021)."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (
            nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)
        )

    def forward(self, pair):
        left, right = self.left(pair[0]), self.right(pair[1])
        return functional.normalize(left, dim=1) @ functional.normalize(right, dim=1).T


def contrastive():
    """Each pair is told from all others of its batch: a micro-batch is other mathematics."""
    return Workload(
        model=Towers,
        dataset=lambda: Points(lambda point, label: ((point, point.flip(0)), label)),
        loss=lambda scores, _: functional.cross_entropy(scores * 10, torch.arange(len(scores))),
        batch_dependent=True,
        global_batch=8,
    )


def _redundancy(outputs, _):
    """What the two views' features tell about each other (Zbontar et al. 2021)."""
    left, right = ((one - one.mean(0)) / (one.std(0) + 1e-3) for one in outputs)
    correlation = left.T @ right / len(left)
    return (correlation - torch.eye(len(correlation))).square().mean()


class TwoViews(Towers):
    def forward(self, pair):
        return self.left(pair[0]), self.right(pair[1])


def redundancy_reduction():
    """A loss over the batch's statistics, of which the owner does not say so."""
    return replace(
        contrastive(),
        model=TwoViews,
        loss=_redundancy,
        batch_dependent=None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4),
    )


class Attending(nn.Module):
    """A block of nanoGPT: one layer for query, key and value, GELU, no bias."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden):
        split = self.c_attn(self.ln_1(hidden)).chunk(3, dim=-1)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in split)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.c_proj(mixed.transpose(1, 2).flatten(-2))
        return hidden + self.feed(self.ln_2(hidden))

    def feed(self, hidden):
        return self.c_out(functional.gelu(self.c_fc(hidden)))


class NanoGpt(nn.Module):
    """Its output layer is its embedding."""

    def __init__(self, block=Attending):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, 32), nn.Embedding(LENGTH, 32)
        self.h = nn.ModuleList(block() for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(32), nn.Linear(32, WORDS, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, tokens):
        hidden = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            hidden = block(hidden)
        return self.lm_head(self.ln_f(hidden))


def _of_tokens(model, **options):
    return Workload(
        **{
            "model": model,
            "dataset": lambda: Points(_tokens),
            "loss": _cross_entropy,
            "blocks": lambda model: list(model.h),
            "optimizer": _without_decay_of_vectors,
            "global_batch": 8,
        }
        | options
    )


def nanogpt():
    return _of_tokens(NanoGpt)


class Experts(Attending):
    """Each token is fed through the better of 4 small networks (Fedus et al. 2022)."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(4)
        )
        del self.c_fc, self.c_out

    def feed(self, hidden):
        tokens = hidden.flatten(0, 1)
        weight, chosen = self.gate(tokens).softmax(-1).max(-1)
        fed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            (mine,) = torch.where(chosen == index)
            if len(mine):
                out = expert(tokens[mine]) * weight[mine, None]
                fed = fed.index_add(0, mine, out.to(fed.dtype))
        return fed.view_as(hidden)


def mixture_of_experts():
    return _of_tokens(lambda: NanoGpt(Experts))


class Selective(nn.Module):
    """A recurrence whose rates depend on its input (Gu & Dao 2023), step by step."""

    def __init__(self, width=32, states=4):
        super().__init__()
        self.norm, self.enter = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.rates = nn.Linear(width, width + 2 * states)
        self.decay = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.leave, self.sizes = nn.Linear(width, width), (width, states, states)

    def forward(self, hidden):
        inner, gate = self.enter(self.norm(hidden)).chunk(2, dim=-1)
        step, into, out = self.rates(inner).split(self.sizes, dim=-1)
        step = functional.softplus(step)[..., None]
        kept = torch.exp(-step * self.decay.exp())
        added = step * into[:, :, None] * inner[..., None]
        state, seen = torch.zeros_like(added[:, 0]), []
        for at in range(hidden.shape[1]):
            state = kept[:, at] * state + added[:, at]
            seen.append((state * out[:, at, None]).sum(-1))
        return hidden + self.leave(torch.stack(seen, 1) * functional.silu(gate))


def selective_recurrence():
    return _of_tokens(lambda: NanoGpt(Selective))


def _padded(point, label):
    tokens, targets = _tokens(point, label)
    targets[4 + 4 * int(label % 3) :] = -100
    return tokens, targets


def uneven_padding():
    """Samples have 4, 8 or 12 words that count."""
    return _of_tokens(
        NanoGpt,
        dataset=lambda: Points(_padded),
        loss_terms=lambda targets: int((targets != -100).sum()),
        uneven_terms=True,
    )


def t5_with_its_cache():
    return replace(t5(), model=lambda: _t5(use_cache=True))


def contrastive_unsaid():
    return replace(contrastive(), batch_dependent=None)


def uneven_padding_unsaid():
    return replace(uneven_padding(), loss_terms=len)


def without_loss():
    """Hands over what the model returns, not the loss in it."""
    return replace(gpt2(), call=lambda model, batch: model(**batch, labels=batch["input_ids"]))


def without_mean():
    return replace(
        lstm(),
        loss=lambda logits, targets: functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        ),
    )
